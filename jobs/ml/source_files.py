"""Which files with text a path holds: itself, those of a folder, and those inside archives."""

import re
from collections.abc import Iterator
from pathlib import Path

from jobs.ml.archives import is_archive, members
from jobs.ml.errors import Unusable
from jobs.ml.text_files import FORMATS, HEAD, PACKINGS, SourceFile, encoding_of

ABOUT = re.compile(r"(readme|licen[cs]e|notice|changelog)(\..*)?|dataset_infos?\.json|state\.json", re.IGNORECASE)
TABLES = ("parquet", "arrow")
ENDINGS = {format: ending.removeprefix(".") for ending, format in reversed(FORMATS.items())}  # the first of each
KNOWN = " or ".join(", ".join(reversed(ENDINGS.values())).rsplit(", ", 1))


def find_files(source: Path) -> list[SourceFile]:
    """One file, or those of a folder and the folders in it, by name. Raises CorruptData, Unusable."""
    if source.is_file():
        return within(source, source.name) if is_archive(source) else [source_file(source, source.name)]
    if not source.is_dir():
        said = "is neither a file nor a folder" if source.exists() else "is not there"
        raise Unusable(f"{source} {said}.", "Give a file or folder on the machine where the workers run.")
    paths = list(files_of(source))
    known = [path for path in paths if format_of(path) or is_archive(path)]
    if not known:
        raise Unusable(f"{source} holds no {KNOWN} file.", there_are(paths))
    files = [file for path in known if path.stat().st_size for file in found(path, source)]
    if not files:
        raise Unusable(f"All {len(known)} files in {source} are empty.")
    return files


def files_of(folder: Path) -> Iterator[Path]:
    """Those that may hold text. Raises Unusable for a link that leads out of the folder."""
    home = folder.resolve()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not wanted(name):
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            hint = "Put the file itself into the folder, or give the folder where it is."
            raise Unusable(f"{name} is a link that leads out of {folder}.", hint)
        if path.is_file():
            yield path


def found(path: Path, folder: Path) -> list[SourceFile]:
    name = path.relative_to(folder).as_posix()
    return within(path, name) if is_archive(path) else [source_file(path, name)]


def within(path: Path, name: str) -> list[SourceFile]:
    """The files with text inside an archive."""
    facts = path.stat()
    inside = {Path(member.name): member for member in members(path, name)}
    files = [
        SourceFile(path, f"{name}/{inner}", format_of(inner), member.packed_size, facts.st_mtime_ns, member)
        for inner, member in inside.items()
        if wanted(inner) and format_of(inner) and member.size
    ]
    if not files:
        raise Unusable(f"{name} holds no {KNOWN} file.", there_are([inner for inner in inside if wanted(inner)]))
    return files


def is_read(path: Path) -> bool:
    """Does the name say what is in the file, and is that read, packed as it may be?"""
    return is_archive(path) or bool(format_of(path) and not is_packed_table(path))


def is_packed_table(path: Path) -> bool:
    return format_of(path) in TABLES and path.suffix.lower() in PACKINGS


def wanted(path: Path) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in path.parts) and not ABOUT.fullmatch(path.name)


def there_are(paths: list[Path]) -> str:
    return f"There are {', '.join(path.name for path in paths[:5])}." if paths else "It is empty."


def format_of(path: Path) -> str:
    inner = path.with_suffix("") if path.suffix.lower() in PACKINGS else path
    return FORMATS.get(inner.suffix.lower(), "")


def source_file(path: Path, name: str) -> SourceFile:
    facts = path.stat()
    if facts.st_size == 0:
        raise Unusable(f"{path} is empty.")
    format = format_of(path)
    if not format:
        with path.open("rb") as file:
            encoding_of(file.read(HEAD), path.name)
        raise Unusable(f"{path.name} could be anything.", "Name it .txt, .jsonl, .csv, .tsv, .parquet or .arrow.")
    if is_packed_table(path):
        raise Unusable(f"{name} is a table inside a packed file.", "Unpack it: the tables are packed as they are.")
    return SourceFile(path, name, format, facts.st_size, facts.st_mtime_ns)
