"""What is inside a zip archive, judged by its table of contents before anything is unpacked."""

import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_LZMA, ZIP_STORED, ZipFile, ZipInfo

from jobs.ml.disk import size
from jobs.ml.errors import Unusable
from jobs.ml.text_files import MOST_RATIO, PACKINGS, TRUSTED, Member, reading

MOST_UNPACKED = 2**40  # bytes
MOST_FILES = 100_000
READABLE = (ZIP_STORED, ZIP_DEFLATED, ZIP_BZIP2, ZIP_LZMA)
NESTED = (".zip", ".tar", ".tgz", ".7z", ".rar", *PACKINGS)


def members(path: Path, name: str) -> list[Member]:
    """The files of the archive by name. Raises CorruptData, Unusable."""
    with reading(name):
        archive = ZipFile(path)
    infos = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
    check_size(path, name, infos)
    for info in infos:
        if said := refusal(info):
            raise Unusable(f"{name} holds {info.filename[:200]}, {said}.", "Pack it again without, or give a folder.")
    return [Member(archive, info) for info in infos]


def check_size(path: Path, name: str, infos: list[ZipInfo]) -> None:
    """The sizes are those that the archive declares; no reader gives more than that."""
    unpacked, packed = sum(info.file_size for info in infos), path.stat().st_size
    hint = "If it is right, unpack it yourself and give the folder."
    if len(infos) > MOST_FILES:
        raise Unusable(f"{name} holds {len(infos):,} files, more than {MOST_FILES:,}.", hint)
    if unpacked > MOST_UNPACKED:
        raise Unusable(f"{name} unpacks to {size(unpacked)}, more than {size(MOST_UNPACKED)}.", hint)
    if unpacked > TRUSTED and unpacked > MOST_RATIO * packed:
        said = f"{name} unpacks to {unpacked // packed:,} times its size ({size(packed)} to {size(unpacked)})"
        raise Unusable(f"{said}, which text never does.", hint)


def refusal(info: ZipInfo) -> str:
    """Why this file is not read, or nothing."""
    path = PurePosixPath(info.filename)
    if path.is_absolute() or PureWindowsPath(info.filename).drive or ".." in path.parts or "\\" in info.filename:
        return "a path that leads out of the archive"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a symbolic link"
    if info.flag_bits & 1:
        return "which is encrypted"
    if path.suffix.lower() in NESTED:
        return "an archive or a packed file of its own"
    return "" if info.compress_type in READABLE else "packed in a way that cannot be read here"
