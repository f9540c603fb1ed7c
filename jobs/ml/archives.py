"""What is inside a zip or tar archive, judged by its table of contents before anything in it is read."""

import io
import os
import stat
import tarfile
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_LZMA, ZIP_STORED, ZipFile, ZipInfo

from jobs.ml.disk import require_space, size
from jobs.ml.errors import Unusable
from jobs.ml.text_files import MOST_RATIO, PACKINGS, TRUSTED, Member, Unpacked, reading

ARCHIVES = (".zip", ".tar", ".tgz", *(f".tar{packing}" for packing in PACKINGS))
MOST_UNPACKED = 2**40  # bytes
MOST_FILES = 100_000
READABLE = (ZIP_STORED, ZIP_DEFLATED, ZIP_BZIP2, ZIP_LZMA)
NESTED = (".zip", ".tar", ".tgz", ".7z", ".rar", *PACKINGS)
MOST_PATH, MOST_NAME = 1000, 255  # characters, and bytes of each of its parts
CHUNK = 2**22


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def members(path: Path, name: str) -> list[Member]:
    """The files of the archive by name. Raises CorruptData, Unusable, DiskFull."""
    return zip_members(path, name) if path.suffix.lower() == ".zip" else tar_members(path, name)


def zip_members(path: Path, name: str) -> list[Member]:
    with reading(name):
        archive = ZipFile(path)
    infos = sorted((i for i in archive.infolist() if not i.filename.endswith("/")), key=lambda info: info.filename)
    check_size(path, name, [info.file_size for info in infos])
    for info in infos:
        refuse(name, info.filename, zip_refusal(info))
    return [Member(info.filename, info.file_size, info.compress_size, partial(archive.open, info)) for info in infos]


def tar_members(path: Path, name: str) -> list[Member]:
    """One that is packed is unpacked first: nothing else leads to the files in its midst."""
    with reading(name):
        file = path.open("rb") if path.suffix.lower() == ".tar" else unpacked(path, name)
        with tarfile.open(fileobj=file, mode="r:", errors="replace") as archive:
            infos = list(islice((info for info in archive if not info.isdir()), MOST_FILES + 1))
    check_size(path, name, [info.size for info in infos])
    for info in infos:
        refuse(name, info.name, tar_refusal(info))
    share = path.stat().st_size / max(
        1, os.fstat(file.fileno()).st_size
    )  # of a byte of the archive to one that it holds
    found = {info.name: info for info in infos}  # what was added again, later, counts
    return [
        Member(info.name, info.size, int(share * info.size), partial(Slice, file, info.offset_data, info.size))
        for _, info in sorted(found.items())
    ]


def check_size(path: Path, name: str, sizes: list[int]) -> None:
    """The sizes are those that the archive declares; no reader gives more than that."""
    whole, packed = sum(sizes), path.stat().st_size
    hint = "If it is right, unpack it yourself and give the folder."
    if len(sizes) > MOST_FILES:
        raise Unusable(f"{name} holds {len(sizes):,} files, more than {MOST_FILES:,}.", hint)
    if whole > MOST_UNPACKED:
        raise Unusable(f"{name} unpacks to {size(whole)}, more than {size(MOST_UNPACKED)}.", hint)
    if whole > TRUSTED and whole > MOST_RATIO * packed:
        said = f"{name} unpacks to {whole // packed:,} times its size ({size(packed)} to {size(whole)})"
        raise Unusable(f"{said}, which text never does.", hint)


def refuse(name: str, inner: str, said: str) -> None:
    path = PurePosixPath(inner)
    if path.is_absolute() or PureWindowsPath(inner).drive or ".." in path.parts or "\\" in inner:
        said = "a path that leads out of the archive"
    elif not path.name or len(inner) > MOST_PATH or any(len(os.fsencode(part)) > MOST_NAME for part in path.parts):
        said = "a name that no file can have"
    if said := said or ("an archive or a packed file of its own" if path.suffix.lower() in NESTED else ""):
        raise Unusable(f"{name} holds {inner[:200]}, {said}.", "Pack it again without, or give a folder.")


def zip_refusal(info: ZipInfo) -> str:
    """Why this file is not read, or nothing."""
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a symbolic link"
    if info.flag_bits & 1:
        return "which is encrypted"
    return "" if info.compress_type in READABLE else "packed in a way that cannot be read here"


def tar_refusal(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "a symbolic link" if info.issym() else "a link to another file"
    return "" if info.isreg() and not info.issparse() else "which is no plain file"


def unpacked(path: Path, name: str) -> IO[bytes]:
    """Raises Unusable where it is more than text can be."""
    packing = ".gz" if path.suffix.lower() == ".tgz" else path.suffix.lower()
    with path.open("rb") as raw:
        return on_disk(Unpacked(PACKINGS[packing](raw), raw, name), name)


def on_disk(stream: Any, name: str) -> IO[bytes]:
    """The rest of the stream in a file without a name, which is gone with this process however it ends. Raises
    DiskFull."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  the caller's
    while chunk := stream.read(CHUNK):
        require_space(Path(tempfile.gettempdir()), len(chunk), f"The rest of {name}", "for temporary files")
        file.write(chunk)
    file.seek(0)
    return file


class Slice(io.RawIOBase):
    """Part of a file that others may read at the same time."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self.file, self.start, self.length, self.at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self.length - self.at)
        found = os.pread(self.file.fileno(), wanted, self.start + self.at)
        if wanted and not found:
            raise EOFError("the archive ends before the file")
        buffer[: len(found)] = found
        self.at += len(found)
        return len(found)
