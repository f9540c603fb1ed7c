"""Parquet and Arrow files."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ipc

from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.local_documents import LocalDocuments
from tests.ml.sources import quick, read, table, taken


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


def damaged(path: Path, texts: list[str], group: int) -> Path:
    """A Parquet file of row groups of a hundred rows, one of them overwritten where its text is."""
    parquet.write_table(pa.table({"text": texts}), path, row_group_size=100, compression="zstd")
    column = parquet.read_metadata(path).row_group(group).column(0)
    data = bytearray(path.read_bytes())
    first = column.dictionary_page_offset or column.data_page_offset
    data[first + 30 : first + column.total_compressed_size] = bytes(column.total_compressed_size - 30)
    path.write_bytes(bytes(data))
    return path


def test_a_damaged_row_group_is_told_by_its_number_or_skipped_alone(lay):
    texts = [f"words of row {i}" for i in range(450)]
    path = damaged(lay("a.parquet", b"x"), texts, 2)
    said = r"a\.parquet, row group 3 of 5 \(100 rows\) is damaged"
    with pytest.raises(CorruptData, match=said):
        read(path)
    source = LocalDocuments(path, skip_broken=True)
    assert taken(source) == texts[:200] + texts[300:]
    assert source.counts.broken_skipped == 1 and re.match(said, source.counts.broken_first[0])


def test_a_file_of_a_folder_that_is_damaged_is_skipped_on_request(lay):
    table(lay("b.parquet", b"x"), text=["words"])
    path = lay("a.parquet", b"PAR1 and nothing more")
    with pytest.raises(CorruptData, match=r"a\.parquet is damaged"):
        read(path.parent)
    source = LocalDocuments(path.parent, skip_broken=True)
    assert taken(source) == ["words"] and source.counts.broken_skipped == 1


ARROW = {"a.arrow": ipc.new_file, "b.arrow": ipc.new_stream}


def arrow(path: Path, data: pa.Table, options: ipc.IpcWriteOptions | None = None) -> Path:
    with ARROW.get(path.name, ipc.new_file)(path, data.schema, options=options) as writer:
        writer.write_table(data, max_chunksize=100)
    return path


@pytest.mark.parametrize("name", [*ARROW, "a.feather"])
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_arrow_files_and_streams_are_read(lay, name, compression):
    texts = [f"row {i}" for i in range(250)]
    data = pa.table({"n": range(250), "text": pa.array(texts).dictionary_encode()})
    path = arrow(lay(name, b"x"), data, ipc.IpcWriteOptions(compression=compression))
    source = LocalDocuments(path)
    seen = []
    found = [text for group in source.groups() if seen.append(source.position()) is None for text in group]
    assert found == texts
    assert source.columns == [{"name": "n", "type": "int64"}, {"name": "text", "type": "text"}]
    assert seen == sorted(seen) and source.position() == source.total


@pytest.mark.parametrize("name", ARROW)
def test_arrow_files_that_are_cut_off_or_damaged_are_told(lay, name):
    path = arrow(lay(name, b"x"), pa.table({"text": [f"some words of row {i}" for i in range(400)]}))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptData, match=rf"{name}.* is damaged or cut off"):
        read(path)
    middle = len(data) // 2
    path.write_bytes(data[:middle] + b"\xee" * 400 + data[middle + 400 :])
    with pytest.raises(CorruptData, match=rf"{name}, .*record batch.* is damaged or cut off"):
        read(path)
    source = LocalDocuments(path, skip_broken=True)
    found = taken(source)
    assert 100 <= len(found) <= 300 and found[0] == "some words of row 0"
    assert source.counts.broken_skipped == 1
    assert (found[-1] == "some words of row 399") == (name == "a.arrow")  # a file goes on after a damaged batch


def test_arrow_with_bytes_that_are_no_utf8_is_read_and_counted(lay):
    raw = pa.array([b"fine " * 40, b"caf\xe9"], pa.binary())
    text = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    source = LocalDocuments(arrow(lay("a.arrow", b"x"), pa.table({"text": text})))
    assert taken(source) == ["fine " * 40, "caf\ufffd"] and source.counts.replaced_characters == 1


def test_a_dataset_saved_by_the_datasets_library_is_read(lay):
    path = arrow(lay("b.arrow", b"x"), pa.table({"text": ["words"]}))
    path.rename(path.with_name("data-00000-of-00001.arrow"))
    lay("state.json", "{}")
    lay("dataset_info.json", "{}")
    assert read(path.parent) == ["words"]


def test_feather_of_the_first_version_is_refused_by_name(lay):
    with pytest.raises(Unusable, match=r"a\.feather is Feather version 1"):
        read(lay("a.feather", b"FEA1" + bytes(40)))


@quick
@given(st.binary(max_size=200), st.sampled_from(["a.arrow", "b.arrow", "a.parquet"]), st.integers(0, 2000))
def test_whatever_is_overwritten_in_a_table_it_is_read_or_refused_in_words(lay, data, name, place):
    path = lay(name, b"x")
    content = pa.table({"text": [f"words {i}" for i in range(120)]})
    _ = table(path, text=content["text"]) if name.endswith("parquet") else arrow(path, content)
    whole = path.read_bytes()
    place = min(place, len(whole))
    path.write_bytes(whole[:place] + data + whole[place + len(data) :])
    try:
        found = read(path)
    except (CorruptData, Unusable) as error:
        assert str(error)
    else:
        assert all(text.encode() for text in found)
