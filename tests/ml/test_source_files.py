"""Folders, packed files and archives."""

import bz2
import gzip
import io
import json
import lzma
import stat
import tarfile
import zipfile
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from jobs.ml import archives, text_files
from jobs.ml.disk import DiskFull
from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.local_documents import LocalDocuments
from tests.ml.sources import quick, read, table, taken


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


# --- several formats at once


def test_a_folder_of_several_formats_is_read_where_the_text_is_the_same(lay):
    lay("a.txt", "one\ntwo\n")
    lay("b.jsonl", [{"text": "three", "n": 1}])
    lay("c.csv", "id,text\n1,four\n")
    path = table(lay("d.parquet", b"x"), text=["five"])
    assert read(path.parent) == ["one", "two", "three", "four", "five"]


def test_a_named_column_is_that_of_the_tables_and_leaves_plain_text_alone(lay):
    lay("a.txt", "one\n")
    lay("b.jsonl", [{"title": "t", "body": "two"}])
    path = lay("c.csv", "id,body\n1,three\n")
    assert read(path.parent, "body") == ["one", "two", "three"]
    lay("c.csv", "id,title\n1,x\n")
    with pytest.raises(Unusable, match=r"c\.csv has no column “body”"):
        read(path.parent, "body")


def test_formats_with_the_text_in_different_columns_are_refused_with_both(lay):
    lay("a.jsonl", [{"body": "x"}])
    path = lay("b.csv", "id,words\n1,y\n")
    with pytest.raises(Unusable, match=r"a\.jsonl has its text in “body”, b\.csv its text in “words”") as refused:
        read(path.parent)
    assert refused.value.field == "text_column"


# --- links


def test_a_link_out_of_the_folder_is_refused_by_name_and_one_within_is_read(lay, tmp_path):
    path = lay("a.txt", "one\n")
    (path.parent / "b.txt").symlink_to("a.txt")
    assert read(path.parent) == ["one", "one"]
    secret = tmp_path / "secret.txt"
    secret.write_text("theirs\n")
    (path.parent / "sub").mkdir()
    link = path.parent / "sub" / "c.txt"
    link.symlink_to(secret)
    with pytest.raises(Unusable, match=r"sub/c\.txt is a link that leads out of"):
        read(path.parent)
    link.unlink()
    link.symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(Unusable, match=r"sub/c\.txt is a link that leads out of"):
        read(path.parent)


# --- archives


@pytest.fixture
def archive(lay):
    """Writes a zip archive of files; a name may be a ZipInfo."""

    def archive(files, name="a.zip", compression=zipfile.ZIP_DEFLATED) -> Path:
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", compression) as opened:
            for inner, content in files.items():
                opened.writestr(inner, content)
        return lay(name, target.getvalue())

    return archive


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_the_files_of_an_archive_are_read_where_they_are(archive, compression):
    rows = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(3000))
    files = {
        "b/rows.jsonl": rows,
        "a.txt": "one\n\ntwo\n",
        "README.md": "no",
        "__MACOSX/._a.txt": "no",
        "pic.png": "no",
    }
    path = archive(files, compression=compression)
    source = LocalDocuments(path)
    seen = []
    found = [text for group in source.groups() if seen.append(source.position()) is None for text in group]
    assert found == ["one", "two", *(f"row {i}" for i in range(3000))]
    assert seen == sorted(seen) and 0 < source.position() <= source.total <= path.stat().st_size
    [told] = source.sources(lambda n: None)
    assert told == {"name": "a.zip", "bytes": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}


def test_archives_in_a_folder_are_read_with_the_files_beside_them(archive, lay):
    path = archive({"x.jsonl": '{"text": "two"}\n'}, "b.zip")
    lay("a.jsonl", [{"text": "one"}])
    lay("c.jsonl", [{"text": "three"}])
    source = LocalDocuments(path.parent)
    assert taken(source) == ["one", "two", "three"]
    assert [told["name"] for told in source.sources(lambda n: None)] == ["a.jsonl", "b.zip", "c.jsonl"]


def test_errors_inside_an_archive_name_both(archive):
    with pytest.raises(CorruptData, match=r"a\.zip/x\.jsonl, line 2 is not JSON"):
        read(archive({"x.jsonl": '{"text": "a"}\n{\n'}))


def link_entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"../../etc/x.txt": "words"}, "a path that leads out of the archive"),
        ({"/etc/x.txt": "words"}, "a path that leads out of the archive"),
        ({"C:/x.txt": "words"}, "a path that leads out of the archive"),
        ({link_entry("x.txt"): "/etc/passwd"}, "a symbolic link"),
        ({"a.txt": "words", "more.zip": "PK"}, "an archive or a packed file of its own"),
        ({"a.txt": "words", "b.jsonl.gz": gzip.compress(b"{}")}, "an archive or a packed file of its own"),
        ({"a.png": "picture"}, r"holds no txt, jsonl, csv, parquet or arrow file"),
    ],
)
def test_what_an_archive_must_not_hold_is_refused_by_name(archive, files, said):
    with pytest.raises(Unusable, match=rf"a\.zip .*{said}") as refused:
        read(archive(files))
    assert refused.value.hint


def test_an_encrypted_archive_is_refused(archive):
    path = archive({"x.txt": "words"})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags, in the file's head and in the table
        data[data.index(mark) + offset] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(Unusable, match=r"a\.zip holds x\.txt, which is encrypted"):
        read(path)


def test_a_zip_bomb_is_refused_before_anything_is_unpacked(archive):
    path = archive({f"{i}.txt": bytes(2**24) for i in range(6)})
    assert path.stat().st_size < 150_000
    with pytest.raises(Unusable, match=r"unpacks to \d[\d,]+ times its size \(9[\d.]+ kB to 100\.7 MB\)"):
        read(path)


def test_an_archive_that_unpacks_to_too_much_or_has_too_many_files_is_refused(archive, monkeypatch):
    path = archive({"a.txt": "words " * 100, "b.txt": "words"})
    monkeypatch.setattr(archives, "MOST_UNPACKED", 500)
    with pytest.raises(Unusable, match="unpacks to 605 bytes, more than 500 bytes"):
        read(path)
    monkeypatch.setattr(archives, "MOST_FILES", 1)
    with pytest.raises(Unusable, match="holds 2 files, more than 1"):
        read(path)


def test_an_archive_that_lies_about_its_sizes_gives_no_more_than_it_said(archive):
    path = archive({"x.txt": b"words " * 100_000})
    data = path.read_bytes().replace((600_000).to_bytes(4, "little"), (600).to_bytes(4, "little"))
    path.write_bytes(data)
    with pytest.raises(CorruptData, match=r"a\.zip/x\.txt is damaged or cut off: Bad CRC"):
        read(path)


def test_an_archive_that_is_cut_off_or_none_is_told(archive, lay):
    path = archive({"x.txt": "words\n" * 1000})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CorruptData, match=r"a\.zip is damaged or cut off"):
        read(path)
    with pytest.raises(CorruptData, match=r"b\.zip is damaged or cut off"):
        read(lay("b.zip", "no archive at all"))


def tables() -> dict[str, bytes]:
    rows = pa.table({"text": [f"row {i}" for i in range(500)]})
    written = {"a.parquet": io.BytesIO(), "b.arrow": io.BytesIO()}
    parquet.write_table(rows, written["a.parquet"], row_group_size=100)
    with pa.ipc.new_file(written["b.arrow"], rows.schema) as writer:
        writer.write_table(rows)
    return {name: target.getvalue() for name, target in written.items()}


def test_tables_inside_an_archive_are_read_and_damage_in_them_is_told(archive, tar):
    for path in (archive(tables()), tar(tables(), "a.tar.gz")):
        assert read(path) == [f"row {i}" for i in range(500)] * 2
    with pytest.raises(CorruptData, match=r"a\.zip/a\.parquet is damaged or cut off"):
        read(archive({"a.parquet": tables()["a.parquet"][:-9]}))


# --- tar archives


@pytest.fixture
def tar(lay):
    """Writes a tar archive of files, packed as its name says; what is None instead of bytes is described alone."""
    packers = {"gz": gzip.compress, "tgz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    packers |= {"zst": zstd_in_two_frames, "tar": bytes}

    def tar(files, name="a.tar", **facts) -> Path:
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w") as opened:
            for inner, content in files.items():
                info = tarfile.TarInfo(inner)
                data = content.encode() if isinstance(content, str) else content or b""
                info.size = len(data)
                for fact, value in facts.items() if content is None else ():
                    setattr(info, fact, value)
                opened.addfile(info, io.BytesIO(data))
        return lay(name, packers[name.rpartition(".")[2]](target.getvalue()))

    return tar


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.TAR.gz", "a.tar.bz2", "a.tar.xz", "a.tar.zst"])
def test_the_files_of_a_tar_archive_are_read_by_name_whatever_it_is_packed_with(tar, name):
    rows = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(3000))
    files = {"./b/rows.jsonl": rows, "./a.txt": "one\n\ntwo\n", "README.md": "no", ".git/x.txt": "no", "pic.png": "no"}
    path = tar(files, name)
    source = LocalDocuments(path)
    seen = []
    found = [text for group in source.groups() if seen.append(source.position()) is None for text in group]
    assert found == ["one", "two", *(f"row {i}" for i in range(3000))]
    assert seen == sorted(seen) and 0 < source.position() <= source.total <= path.stat().st_size
    [told] = source.sources(lambda n: None)
    assert told == {"name": name, "bytes": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CorruptData, match=rf"{name}.* is damaged or cut off"):
        read(path)


@pytest.mark.parametrize(
    ("files", "facts", "said"),
    [
        ({"../../etc/x.txt": "words"}, {}, "a path that leads out of the archive"),
        ({"/etc/x.txt": "words"}, {}, "a path that leads out of the archive"),
        ({"x.txt": None}, {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a symbolic link"),
        ({"x.txt": None}, {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, "a link to another file"),
        ({"x.txt": None}, {"type": tarfile.CHRTYPE}, "which is no plain file"),
        ({"a.txt": "words", "more.tar.gz": "PK"}, {}, "an archive or a packed file of its own"),
        ({"a.png": "picture"}, {}, "holds no txt, jsonl, csv, parquet or arrow file"),
    ],
)
def test_what_a_tar_archive_must_not_hold_is_refused_by_name(tar, files, facts, said):
    with pytest.raises(Unusable, match=rf"a\.tar .*{said}") as refused:
        read(tar(files, **facts))
    assert refused.value.hint


def test_a_packed_tar_archive_that_unpacks_to_too_much_is_stopped_while_it_is_unpacked(tar, monkeypatch):
    monkeypatch.setattr(text_files, "TRUSTED", 2**22)
    with pytest.raises(Unusable, match=r"a\.tar\.gz unpacks to more than 250 times its size"):
        read(tar({"a.txt": "a" * 2**24}, "a.tar.gz"))
    monkeypatch.setattr(archives, "MOST_FILES", 1)
    with pytest.raises(Unusable, match="holds 2 files, more than 1"):
        read(tar({"a.txt": "words", "b.txt": "words"}))
    monkeypatch.setattr("jobs.ml.disk.RESERVE", 2**60)
    with pytest.raises(DiskFull, match=r"The rest of a\.tgz needs .* are free for temporary files"):
        read(tar({"a.txt": "words"}, "a.tgz"))


def test_a_tar_archive_whose_files_are_longer_than_it_is_told(tar):
    path = tar({"a.txt": "words\n" * 1000})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(CorruptData, match=r"a\.tar.* is damaged or cut off"):
        read(path)


def test_of_a_file_that_was_added_to_a_tar_archive_twice_the_later_counts(tar):
    path = tar({"a.txt": "old"})
    with tarfile.open(path, "a") as opened:
        info = tarfile.TarInfo("a.txt")
        info.size = 3
        opened.addfile(info, io.BytesIO(b"new"))
    assert read(path) == ["new"]


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_a_packed_file_that_unpacks_to_far_more_than_text_is_stopped(lay, monkeypatch, ending, pack):
    monkeypatch.setattr(text_files, "TRUSTED", 2**22)
    path = lay(f"a.txt.{ending}", pack(b"a" * 2**24))
    with pytest.raises(Unusable, match=rf"a\.txt\.{ending} unpacks to more than 250 times its size"):
        read(path)


def test_a_packed_table_is_refused_before_it_is_called_damaged(lay):
    with pytest.raises(Unusable, match="is a table inside a packed file"):
        read(lay("a.parquet.gz", gzip.compress(b"PAR1")))
