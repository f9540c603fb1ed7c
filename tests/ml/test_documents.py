import os
import statistics
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.ml import document_statistics, documents, duplicates, text_files
from jobs.ml.document_statistics import DocumentStatistics
from jobs.ml.documents import DocumentWriter, check_unchanged, count_documents, read_documents, shards
from jobs.ml.duplicates import Digests
from jobs.ml.errors import CorruptData
from jobs.ml.store import write_manifest
from tests.ml.sources import TEXT, quick


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


def finished(folder: Path) -> Path:
    write(folder, [f"document {i}" for i in range(50)])
    write_manifest(folder, [path.name for path in shards(folder)])
    return folder


def test_a_dataset_at_rest_is_unchanged_also_when_it_was_only_touched(tmp_path, small):
    folder = finished(tmp_path / "a")
    check_unchanged(folder)
    later = (folder / "manifest.json").stat().st_mtime + 100
    os.utime(shards(folder)[0], (later, later))
    check_unchanged(folder)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("other contents", "has other contents"),
        ("other size", r"has [\d,]+ bytes instead of"),
        ("missing", "is missing"),
    ],
)
def test_shards_that_change_after_a_dataset_was_finished_are_told_by_name(tmp_path, small, how, said):
    folder = finished(tmp_path / "a")
    path, later = shards(folder)[1], (folder / "manifest.json").stat().st_mtime + 100
    data = path.read_bytes()
    path.write_bytes(data[:40] + b"!" + data[41:] if how == "other contents" else data + b"!")
    os.utime(path, (later, later))
    if how == "missing":
        path.unlink()
    with pytest.raises(CorruptData, match=rf"changed since it was added: {path.name} {said}"):
        check_unchanged(folder)


def test_a_shard_that_came_later_is_told_too(tmp_path, small):
    folder = finished(tmp_path / "a")
    (folder / "documents-00099.parquet").write_bytes(shards(folder)[0].read_bytes())
    with pytest.raises(CorruptData, match="documents-00099.parquet was not there"):
        check_unchanged(folder)


def test_texts_are_told_apart_by_their_digests_but_not_by_white_space():
    seen = Digests()
    assert [seen.add(text) for text in ("a b", "a  b\n", "ab", "A b", "cafe\u0301", "caf\u00e9")] == [
        True, False, True, True, True, False
    ]  # fmt: skip


@quick
@given(st.lists(st.integers(1, 2**64 - 1) | st.integers(1, 50)))
def test_a_table_of_digests_is_a_set(monkeypatch, numbers):
    monkeypatch.setattr(duplicates, "SLOTS", 4)
    seen, plain = Digests(), set()
    for number in numbers:
        assert seen.insert(number) == (number not in plain)
        plain.add(number)
    assert seen.held == len(plain)


def test_a_table_of_digests_takes_at_most_24_bytes_a_text():
    seen = Digests()
    for n in range(20_000):
        seen.add(f"text {n}")
    assert seen.held == 20_000
    assert 12 * seen.held <= 8 * len(seen.slots) <= 24 * seen.held


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
