"""Files of text: documents, encodings, long lines."""

import gzip
import json
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.ml import text_files
from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.local_documents import LocalDocuments
from tests.ml.sources import quick, read

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


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Größe und “Öl” für 5 €"),
        ("utf-16-le", "naïve 💡"),
        ("shift_jis", "日本語の文"),
        ("koi8-r", "Привет"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_a_file_in_an_encoding_of_its_own_is_read_once_it_is_named(lay, encoding, text, name):
    content = {"a.txt": f"{text}\n", "a.csv": f"text\n{text}\n", "a.jsonl": json.dumps(text, ensure_ascii=False)}
    path = lay(name, content[name].encode(encoding))
    assert read(path, encoding=encoding) == [text]


def test_a_mark_in_the_file_says_more_than_the_encoding_that_was_named(lay):
    assert read(lay("a.txt", "naïve 💡".encode("utf-8-sig")), encoding="cp1252") == ["naïve 💡"]


def test_a_named_encoding_that_is_the_wrong_one_is_told(lay):
    path = lay("a.txt", "Größe, Käse, Äpfel und Öl für später\n".encode("cp1252") * 9)
    with pytest.raises(CorruptData, match=r"a\.txt is not in utf-8") as refused:
        read(path, encoding="utf-8")
    assert "windows-1252" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "encoding", "name"),
    [
        ("le café était fermé", "windows-1252", "a.txt"),
        ("zażółć gęślą jaźń", "windows-1250", "a.csv"),
        ("однажды весною", "windows-1251", "a.jsonl"),
        ("吾輩は猫である", "shift_jis", "a.txt.gz"),
        ("天下大势分久必合", "gb18030", "a.txt"),
        ("옛날 어느 마을에", "euc_kr", "a.txt"),
    ],
)
def test_a_file_that_is_not_utf8_is_refused_at_its_place_with_what_each_encoding_makes_of_it(lay, text, encoding, name):
    whole = {"csv": f"text\nplain\n{text}\n", "jsonl": f'{{"text": "a"}}\n{{"text": "b"}}\n{{"text": "{text}"}}\n'}
    data = whole.get(name.rpartition(".")[2], f"plain\nwords\n{text}\n").encode(encoding)
    path = lay(name, gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(CorruptData, match=r"is not in UTF-8: .* the first in line 3\.") as refused:
        read(path)
    first = next(place for place, letter in enumerate(text) if not letter.isascii())
    assert re.search(rf"“[^”]*{text[first : first + 5]}[^”]*” in {encoding}", refused.value.hint)
    assert text in "".join(read(path, encoding=encoding))


def test_a_wrong_encoding_is_no_broken_row_to_be_skipped(lay):
    path = lay("a.txt", "Größe, Käse, Äpfel und Öl für später\n".encode("cp1252") * 9)
    with pytest.raises(CorruptData, match="not in UTF-8"):
        read(path, skip_broken=True)


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
        (gzip.compress(b"text", mtime=0), "packed with gzip"),
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
