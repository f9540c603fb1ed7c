import bz2
import csv
import gzip
import io
import json
import lzma
import statistics
import tracemalloc
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.ml import document_statistics, documents, text_files, text_rows
from jobs.ml.document_statistics import DocumentStatistics
from jobs.ml.documents import DocumentWriter, count_documents, read_documents, shards
from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.local_documents import LocalDocuments

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('\n\r\t"'), max_size=60)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def lay(tmp_path):
    """Writes a file; text is UTF-8, and anything that is no text or bytes is JSON lines."""

    def lay(name: str, content) -> Path:
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return lay


def read(path, column="") -> list[str]:
    return [text for group in LocalDocuments(path, column).groups() for text in group]


def table(path: Path, **columns) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


# --- text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("one\ntwo\nthree\n", ["one", "two", "three"]),
        ("one\ntwo", ["one", "two"]),
        ("one\r\ntwo\r\n", ["one", "two"]),
        ("first line\nsecond line\n\nnext block\n", ["first line\nsecond line", "next block"]),
        ("a\r\n  \t\r\n\r\nb\r\n", ["a", "b"]),
        ("\n\none\ntwo\n\n", ["one", "two"]),
        ("  indented\n", ["  indented"]),
        ("a\x00b\x07c\n", ["a\x00b\x07c"]),
        ("\N{LINE SEPARATOR}x\x85y\n", ["\N{LINE SEPARATOR}x\x85y"]),
    ],
)
def test_a_text_file_is_cut_at_blank_lines_or_else_at_lines(lay, content, expected):
    assert read(lay("a.txt", content)) == expected


@quick
@given(st.lists(st.text("ab \n\t", max_size=8), max_size=8))
def test_blocks_and_lines_are_those_of_a_plain_reading(lay, parts):
    content = "".join(parts) + "x"
    lines = content.split("\n")
    blocks, held = [], []
    for line in [*lines, ""]:
        if line.strip():
            held.append(line)
        elif held:
            blocks.append("\n".join(held))
            held = []
    expected = blocks if len(blocks) > 1 else [line for line in lines if line.strip()]
    assert read(lay("a.txt", content)) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_encodings_with_a_mark_are_recognised(lay, encoding, name):
    rows = {"a.txt": "naïve 💡\nzwei\n", "a.csv": "text\nnaïve 💡\nzwei\n", "a.jsonl": '{"text": "naïve 💡"}\n"zwei"\n'}
    assert read(lay(name, rows[name].encode(encoding))) == ["naïve 💡", "zwei"]


def test_a_few_unreadable_bytes_are_replaced_and_counted(lay):
    source = LocalDocuments(lay("a.txt", b"plain words " * 50 + b"caf\xe9 and \xff\n"))
    (text,) = [text for group in source.groups() for text in group]
    assert text.endswith("caf\ufffd and \ufffd")
    assert source.counts.replaced_characters == 2


def test_another_encoding_is_told_from_damage(lay):
    path = lay("a.txt", "Größe, Käse, Äpfel und Öl für später\n".encode("latin-1") * 9)
    with pytest.raises(CorruptData, match=r"a\.txt is not in UTF-8: \d+\.\d % of its characters"):
        read(path)


def test_a_wrong_encoding_is_noticed_before_the_end_of_a_large_file(lay, monkeypatch):
    monkeypatch.setattr("jobs.ml.local_documents.ENOUGH", 100)
    documents = LocalDocuments(lay("a.txt", b"\xe4\xf6\xfc\n" * 500)).groups()
    with pytest.raises(CorruptData):
        [next(documents) for _ in range(100)]


def test_lone_surrogates_are_replaced_and_counted(lay):
    source = LocalDocuments(lay("a.jsonl", '{"text": "x\\ud800y%s"}\n' % ("." * 200)))
    (text,) = [text for group in source.groups() for text in group]
    assert text.startswith("x\ufffdy") and source.counts.replaced_characters == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04rest", "a zip archive"),
        (b"%PDF-1.7", "a PDF"),
        (gzip.compress(b"text"), "packed with gzip"),
        (b"PAR1....", "a Parquet file"),
        (bytes(range(32)) * 20, "a binary file"),
        ("text as windows saves it".encode("utf-16-le"), "UTF-16 without its mark"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_what_is_no_text_is_refused_by_name(lay, name, content, said):
    with pytest.raises(Unusable, match=f"{name} is .*{said}") as caught:
        read(lay(name, content))
    assert caught.value.hint


def test_an_empty_file_is_refused(lay):
    with pytest.raises(Unusable, match="is empty"):
        read(lay("a.txt", ""))


@pytest.mark.parametrize("name", ["thing", "thing.docx", "thing.gz"])
def test_an_unknown_ending_is_refused(lay, name):
    with pytest.raises(Unusable, match="could be anything") as caught:
        read(lay(name, "some words"))
    assert ".jsonl" in caught.value.hint


def test_what_is_neither_file_nor_folder_is_refused(lay):
    with pytest.raises(Unusable, match="is not there"):
        read(Path("/no/such/path.txt"))
    with pytest.raises(Unusable, match="neither a file nor a folder"):
        read(Path("/dev/zero"))


# --- long texts


@quick
@given(st.lists(st.text("ab \n", min_size=1, max_size=90), min_size=1, max_size=4), st.sampled_from(["txt", "jsonl"]))
def test_pieces_of_a_long_text_are_short_and_lose_nothing(lay, monkeypatch, texts, ending):
    monkeypatch.setattr(text_files, "LONGEST", 64)
    text = "".join(texts).strip() or "x"
    if ending == "txt":
        text = text.replace("\n", " ")
    source = LocalDocuments(lay(f"a.{ending}", text if ending == "txt" else [{"text": text}]))
    found = [piece for group in source.groups() for piece in group]
    assert all(len(piece) <= 64 for piece in found)
    assert len("".join(found).replace(" ", "").replace("\n", "")) == len(text.replace(" ", "").replace("\n", ""))
    assert source.counts.cut_pieces + 1 == len(found) + source.counts.empty_dropped


def test_a_long_text_is_cut_at_white_space_near_the_end(monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST", 640)
    found = list(text_files.pieces("x" * 635 + " " + "y" * 100, text_files.Counts()))
    assert found == ["x" * 635 + " ", "y" * 100]


def test_a_line_far_longer_than_memory_should_hold_is_read_in_pieces(lay):
    path = lay("a.txt", b"word " * 8_000_000)
    tracemalloc.start()
    source = LocalDocuments(path)
    lengths = [len(text) for group in source.groups() for text in group]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(lengths) == 40_000_000 and max(lengths) <= text_files.LONGEST
    assert source.counts.cut_pieces == len(lengths) - 1
    assert peak < 20_000_000


# --- JSON


@quick
@given(st.lists(TEXT, min_size=1, max_size=12))
def test_json_lines_give_back_what_was_written(lay, texts):
    texts = [*texts, "an end"]
    expected = [text for text in texts if text.strip()]
    assert read(lay("a.jsonl", [{"text": text, "n": 1} for text in texts])) == expected
    assert read(lay("b.jsonl", texts)) == expected
    assert read(lay("a.json", json.dumps([{"text": text} for text in texts], indent=1))) == expected


def test_a_large_array_is_read_element_by_element(lay):
    rows = [{"text": f"{i} " + '[{\\"' * (i % 300)} for i in range(1500)]
    assert read(lay("a.json", json.dumps(rows))) == [row["text"] for row in rows]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a"}\n{"text": b}\n', "line 2 is not JSON"),
        ('{"text": "a"}\n{"text": "b', "line 2 is not JSON.* in the middle of a line"),
        ('{"text": "a"}\n{\n', "line 2 is not JSON"),
        ('{"text": "a"}\n12\n', "line 2 is a JSON number, not an object"),
        ('{"text": "a"}\nnull\n', "line 2 is a JSON null, not an object"),
        ('{"text": "a"}\n{"text": 5}\n', "line 2: column “text” holds a number, not text"),
        ('{"text": "a"}\n{"text": ["b"]}\n', "line 2: column “text” holds a list, not text"),
        ('{"text": "a"}\n' + "[" * 100_000 + "\n", "line 2 is not JSON"),
        ('[{"text": "a"}, {"text": "b"', "element 2 is not whole JSON"),
        ('[{"text": "a"} {"text" "b"}]', "element 2 is not whole JSON"),
    ],
)
def test_malformed_json_is_told_with_file_and_line(lay, content, said):
    with pytest.raises(CorruptData, match=rf"a\.jsonl, {said}"):
        read(lay("a.jsonl", content))


def test_empty_and_missing_values_are_dropped_and_counted(lay):
    source = LocalDocuments(
        lay("a.jsonl", [{"text": ""}, {"text": None}, {"other": 1}, {"text": " \n"}, {"text": "x"}])
    )
    assert list(source.groups()) == [["x"]]
    assert source.counts.empty_dropped == 4


def test_a_line_too_long_to_be_held_is_told_by_its_number(lay, monkeypatch):
    monkeypatch.setattr(text_rows, "LONGEST_LINE", 70_000)
    with pytest.raises(CorruptData, match=r"a\.jsonl, line 2 is longer"):
        read(lay("a.jsonl", [{"text": "x"}, {"text": "y" * 80_000}]))


# --- columns


def test_the_column_is_the_one_named_else_text_else_the_only_one(lay):
    both = lay("a.jsonl", [{"title": "t", "text": "x", "n": 3}])
    assert (read(both), read(both, "title")) == (["x"], ["t"])
    assert read(lay("b.jsonl", [{"n": 1, "body": "x", "ok": True}])) == ["x"]


def test_several_text_columns_and_none_chosen_names_them(lay):
    with pytest.raises(Unusable, match="several columns with text: title, body") as caught:
        read(lay("a.jsonl", [{"title": "t", "body": "x", "n": 1}]))
    assert caught.value.field == "text_column"


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.txt"])
def test_a_missing_column_names_those_there_are(lay, name):
    contents = {"a.jsonl": [{"title": "t", "n": 1}], "a.csv": "title,n\nt,1\n", "a.txt": "words\n"}
    path = lay(name, contents.get(name, b"x"))
    if name == "a.parquet":
        table(path, title=["t"], n=[1])
    has = "text" if name == "a.txt" else r"title \(text\), n"
    with pytest.raises(Unusable, match=f"no column “body”. It has: {has}") as caught:
        read(path, "body")
    assert caught.value.field == "text_column"


def test_a_column_of_another_type_is_refused_where_it_was_chosen(lay):
    numbers = table(lay("a.parquet", b"x"), text=["x"], n=[1])
    for path, kind in ((numbers, "int64"), (lay("a.jsonl", [{"text": "x", "n": 1}]), "number")):
        with pytest.raises(Unusable, match=f"column “n” of .* is of type {kind}") as caught:
            read(path, "n")
        assert caught.value.field == "text_column"
    assert read(lay("a.csv", "text,n\nx,1\n"), "n") == ["1"]


def test_no_column_with_text_is_told(lay):
    with pytest.raises(Unusable, match=r"no column with text. It has: n \(number\), tags \(list\)"):
        read(lay("a.jsonl", [{"n": 1, "tags": ["a"]}]))


def test_columns_are_described(lay):
    rows = [{"text": "a", "n": 1, "both": 1}, {"text": "b", "n": 2.5, "both": "x", "none": None}]
    types = {column["name"]: column["type"] for column in LocalDocuments(lay("a.jsonl", rows)).columns}
    assert types == {"text": "text", "n": "number", "both": "mixed", "none": "empty"}


# --- CSV


@quick
@given(st.lists(PLAIN, min_size=1, max_size=8), st.sampled_from(",;\t|"))
def test_csv_gives_back_what_was_written(lay, texts, delimiter):
    target = io.StringIO(newline="")
    writer = csv.writer(target, delimiter=delimiter)
    writer.writerows([["id", "text"], *enumerate([*texts, "an end"])])
    expected = [text for text in [*texts, "an end"] if text.strip()]
    assert read(lay("a.csv", target.getvalue()), "text") == expected


def test_a_field_beyond_the_limit_of_the_csv_module_is_read(lay):
    assert [len(text) for text in read(lay("a.csv", 'text,n\n"' + "long, " * 50_000 + '",1\n'))] == [300_000]


def test_a_quotation_mark_that_never_closes_is_told(lay, monkeypatch):
    monkeypatch.setattr(text_rows, "LONGEST_LINE", 5000)
    with pytest.raises(CorruptData, match=r"a\.csv, line \d+ is not CSV") as caught:
        read(lay("a.csv", 'text,n\n"open,1\n' + "some more words,2\n" * 900))
    assert "never closed" in caught.value.hint


def test_csv_with_short_rows_blank_lines_and_numbers_is_read(lay):
    path = lay("a.csv", "id,words\n1,first\n\n2\n3,third,,\n")
    source = LocalDocuments(path)
    assert [text for group in source.groups() for text in group] == ["first", "third"]
    assert source.columns == [{"name": "id", "type": "number"}, {"name": "words", "type": "text"}]


@pytest.mark.parametrize("content", ["text\nhello, world\n", "id,text\n1,fine\n2,hello, world\n"])
def test_a_text_that_its_delimiter_would_cut_is_refused_and_not_cut(lay, content):
    with pytest.raises(CorruptData, match="values, but the header names") as refused:
        read(lay("a.csv", content))
    assert "quotation marks" in refused.value.hint


def test_a_csv_with_nothing_but_its_header_has_no_rows(lay):
    with pytest.raises(Unusable, match="has no rows"):
        read(lay("a.csv", "id,text\n"))


# --- Parquet


def test_parquet_strings_of_all_kinds_are_read(lay):
    path = lay("a.parquet", b"x")
    for array in (
        pa.array(["a", None, "b"]),
        pa.array(["a", "", "b"], pa.large_string()),
        pa.array(["a", " ", "b"]).dictionary_encode(),
    ):
        assert read(table(path, text=array, n=[1, 2, 3])) == ["a", "b"]


def test_parquet_with_bytes_that_are_no_utf8_is_read_and_counted(lay):
    raw = pa.array([b"fine " * 40, b"caf\xe9"], pa.binary())
    text = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    source = LocalDocuments(table(lay("a.parquet", b"x"), text=text))
    assert [text for group in source.groups() for text in group] == ["fine " * 40, "caf\ufffd"]
    assert source.counts.replaced_characters == 1


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_parquet_file_that_is_cut_off_is_damaged(lay, kept):
    path = table(lay("a.parquet", b"x"), text=["words"] * 1000)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(CorruptData, match=r"a\.parquet is damaged"):
        read(path)


def test_damage_inside_a_parquet_file_is_told_by_its_name(lay):
    path = lay("a.parquet", b"x")
    parquet.write_table(pa.table({"text": [f"words {i}" for i in range(9000)]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[200:2000] = bytes(1800)
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptData, match=r"a\.parquet, row group 1 of 1 \(9,000 rows\) is damaged"):
        read(path)


# --- folders and packed files


def test_a_folder_is_read_by_name_and_what_is_about_it_is_left_out(lay):
    for name in ("b/2.jsonl", "a/1.jsonl", "c.ndjson"):
        root = lay(name, [{"text": name}])
    for name in ("README.md", ".hidden.jsonl", ".git/x.jsonl", "LICENSE.txt", "dataset_infos.json", "picture.png"):
        lay(name, "no")
    lay("empty.jsonl", "")
    assert read(root.parent) == ["a/1.jsonl", "b/2.jsonl", "c.ndjson"]


def test_a_folder_without_text_says_what_is_there(lay, tmp_path):
    path = lay("a.png", b"x")
    with pytest.raises(Unusable, match="no txt, jsonl, csv, parquet or arrow") as caught:
        read(path.parent)
    assert "a.png" in caught.value.hint
    (tmp_path / "nothing").mkdir()
    with pytest.raises(Unusable) as caught:
        read(tmp_path / "nothing")
    assert caught.value.hint == "It is empty."


def test_a_file_of_a_folder_that_lacks_the_column_is_named(lay):
    table(lay("a.parquet", b"x"), text=["x"])
    path = table(lay("b.parquet", b"x"), body=["x"])
    with pytest.raises(Unusable, match=r"b\.parquet has no column “text”"):
        read(path.parent)


def zstd_in_two_frames(data):
    frames = (
        pa.compress(part, codec="zstd", asbytes=True) for part in (data[: len(data) // 2], data[len(data) // 2 :])
    )
    return b"".join(frames)


@pytest.mark.parametrize(
    ("ending", "pack"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd_in_two_frames)],
)
def test_packed_files_are_read_and_torn_ones_told(lay, ending, pack):
    rows = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(9000))
    path = lay(f"a.jsonl.{ending}", pack(rows.encode()))
    assert len(read(path)) == 9000
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CorruptData, match="damaged or cut off"):
        read(path)


@quick
@given(
    st.binary(min_size=1, max_size=300),
    st.sampled_from(["txt", "jsonl", "json", "csv", "tsv", "parquet", "txt.gz", "txt.zst"]),
)
def test_whatever_bytes_a_file_holds_it_is_read_or_refused_in_words(lay, data, ending):
    try:
        found = read(lay(f"a.{ending}", data))
    except (CorruptData, Unusable) as error:
        assert str(error)
    else:
        assert all(text.encode() and text.strip() for text in found)


def test_a_file_that_changes_while_it_is_read_is_told(lay):
    path = lay("a.txt", "one\ntwo\n")
    groups = LocalDocuments(path).groups()
    next(groups)
    path.write_text("other\nlines\n")
    with pytest.raises(Unusable, match="was changed while it was read"):
        list(groups)


def test_sources_carry_the_checksums_of_files_read_to_their_end(lay):
    lay("a.txt", "one\ntwo\n")
    path = lay("b.txt", "three\n")
    source = LocalDocuments(path.parent)
    groups = source.groups()
    for _ in range(3):
        next(groups)
    first, second = source.sources(lambda n: None)
    assert first == {"name": "a.txt", "bytes": 8, "sha256": sha256(b"one\ntwo\n").hexdigest()}
    assert second["sha256"] is None


def test_the_position_grows_to_the_size_of_all_files(lay):
    path = lay("a.txt", "line\n" * 30_000)
    table(lay("../p/a.parquet", b"x"), text=["x"] * 1000)
    for source in (LocalDocuments(path), LocalDocuments(path.parent.parent / "p")):
        seen = [source.position() for _ in source.groups()]
        assert seen == sorted(seen) and source.position() == source.total


# --- on disk


def write(folder: Path, texts: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    writer = DocumentWriter(folder)
    for text in texts:
        writer.add(text)
        if writer.full:
            writer.finish_shard()
    writer.finish_shard()
    writer.close()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(documents, "GROUP_CHARACTERS", 100)
    monkeypatch.setattr(documents, "GROUP_DOCUMENTS", 7)
    monkeypatch.setattr(documents, "SHARD_CHARACTERS", 300)
    monkeypatch.setattr(documents, "BATCH", 3)


@quick
@given(st.lists(TEXT, min_size=1, max_size=60), st.integers(0, 70))
def test_documents_come_back_from_any_number_on(tmp_path_factory, small, texts, start):
    folder = tmp_path_factory.mktemp("documents")
    write(folder, texts)
    assert list(read_documents(folder, start)) == texts[start:]
    assert count_documents(folder) == len(texts)
    indices = [i for path in shards(folder) for i in parquet.read_table(path)["index"].to_pylist()]
    assert indices == list(range(len(texts)))


def test_the_same_documents_give_the_same_bytes(tmp_path, small):
    texts = [f"document {i} " * (i % 9) for i in range(200)]
    write(tmp_path / "a", texts)
    write(tmp_path / "b", texts)
    assert len(shards(tmp_path / "a")) > 3
    for a, b in zip(shards(tmp_path / "a"), shards(tmp_path / "b"), strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_a_shard_that_is_not_whole_is_not_seen(tmp_path):
    writer = DocumentWriter(tmp_path)
    writer.add("x" * (documents.GROUP_CHARACTERS + 1))
    assert shards(tmp_path) == []
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_documents_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="has not been added"):
        next(read_documents(tmp_path))


@quick
@given(st.lists(TEXT, min_size=1, max_size=50))
def test_statistics_are_those_of_a_plain_count(texts):
    found = DocumentStatistics()
    for text in texts:
        found.add(text)
    summary, lengths = found.summary(), sorted(map(len, texts))
    assert summary["characters"] == sum(lengths)
    assert summary["bytes"] == sum(len(text.encode()) for text in texts)
    assert summary["mean_characters"] == statistics.mean(lengths)
    assert summary["median_characters"] == statistics.median_low(lengths)
    assert summary["p95_characters"] == lengths[-(-95 * len(lengths) // 100) - 1]
    assert summary["longest_characters"] == lengths[-1]
    assert summary["duplicates"] == len(texts) - len(set(texts))
    assert sum(summary["documents_by_characters"].values()) == len([n for n in lengths if n])


def test_the_histogram_doubles_from_range_to_range():
    found = DocumentStatistics()
    for length in (1, 2, 3, 64, 127, 128, text_files.LONGEST):
        found.add("x" * length)
    expected = {"1": 1, "2–3": 2, "64–127": 2, "128–255": 1, "1048576": 1}
    assert found.summary()["documents_by_characters"] == expected


def test_duplicates_say_over_how_many_documents_they_were_counted(monkeypatch):
    monkeypatch.setattr(document_statistics, "MOST_COMPARED", 3)
    found = DocumentStatistics()
    for text in ("a", "a", "b", "b"):
        found.add(text)
    summary = found.summary()
    assert (summary["duplicates"], summary["duplicates_among_first"]) == (1, 3)
