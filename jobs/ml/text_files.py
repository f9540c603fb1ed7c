"""Files with text, as people have them: which there are, in what encoding, and long texts cut to documents."""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from jobs.ml.errors import CorruptData, Unusable

LONGEST = 2**20  # characters of a document; a longer text becomes several
LONGEST_LINE = 2**26  # characters of a line of a table, which must be read as a whole
FORMATS = {
    ".txt": "text", ".text": "text", ".md": "text",
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet",
}  # fmt: skip
PACKINGS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda raw: zstd(raw),
}
ABOUT = re.compile(r"(readme|licen[cs]e|notice|changelog)(\..*)?|dataset_infos?\.json|state\.json", re.IGNORECASE)
MAGIC = {
    b"PK\x03\x04": "a zip archive or an office document", b"%PDF": "a PDF", b"\x1f\x8b": "packed with gzip",
    b"BZh": "packed with bzip2", b"\xfd7zXZ": "packed with xz", b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"7z\xbc\xaf": "a 7-Zip archive", b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture", b"GIF8": "a picture",
    b"\x7fELF": "a program", b"PAR1": "a Parquet file", b"ARROW1": "an Arrow file", b"SQLite format": "a database",
    b"GGUF": "a language model", b"\x80\x02": "a pickle", b"\x80\x04": "a pickle", b"OggS": "sound", b"RIFF": "sound",
}  # fmt: skip
BYTE_ORDER_MARKS = [
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as that of UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b")) + b"\x7f"
HEAD = 8192
UNREADABLE = "mistudio.unreadable"
SURROGATES = re.compile("[\ud800-\udfff]")

# What cannot be decoded becomes a lone surrogate, which no text may have: `clean` counts and replaces both alike.
codecs.register_error(UNREADABLE, lambda error: ("\udc80", error.end))  # type: ignore[attr-defined]


@dataclass
class Counts:
    """What was done to the texts on their way."""

    empty_dropped: int = 0
    cut_pieces: int = 0  # documents that are the continuation of the one before
    replaced_characters: int = 0


@dataclass(frozen=True)
class SourceFile:
    path: Path
    name: str  # relative to the folder that was chosen
    format: str
    size: int
    changed_ns: int

    @property
    def packing(self) -> str:
        return self.path.suffix.lower() if self.path.suffix.lower() in PACKINGS else ""


def find_files(source: Path) -> list[SourceFile]:
    """One file, or those of a folder and the folders in it, by name. Raises Unusable."""
    if source.is_file():
        return [source_file(source, source.name)]
    if not source.is_dir():
        said = "is neither a file nor a folder" if source.exists() else "is not there"
        raise Unusable(f"{source} {said}.", "Give a file or folder on the machine where the workers run.")
    paths = sorted(path for path in source.rglob("*") if path.is_file() and wanted(path.relative_to(source)))
    known = [path for path in paths if format_of(path)]
    if not known:
        raise Unusable(f"{source} holds no txt, jsonl, csv or parquet file.", there_are(paths))
    files = [source_file(path, path.relative_to(source).as_posix()) for path in known if path.stat().st_size]
    if not files:
        raise Unusable(f"All {len(known)} files in {source} are empty.")
    if len(formats := sorted({file.format for file in files})) > 1:
        found = ", ".join(f"{sum(file.format == format for file in files)} {format}" for format in formats)
        raise Unusable(
            f"{source} holds files of several formats: {found}.", "Give one file, or a folder of one format."
        )
    return files


def wanted(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts) and not ABOUT.fullmatch(path.name)


def there_are(paths: list[Path]) -> str:
    return f"There are {', '.join(path.name for path in paths[:5])}." if paths else "It is empty."


def format_of(path: Path) -> str:
    inner = path.with_suffix("") if path.suffix.lower() in PACKINGS else path
    return FORMATS.get(inner.suffix.lower(), "")


def source_file(path: Path, name: str) -> SourceFile:
    facts = path.stat()
    if facts.st_size == 0:
        raise Unusable(f"{path} is empty.")
    if not format_of(path):
        with path.open("rb") as file:
            encoding_of(file.read(HEAD), path.name)
        raise Unusable(f"{path.name} could be anything.", "Name it .txt, .jsonl, .csv, .tsv or .parquet.")
    return SourceFile(path, name, format_of(path), facts.st_size, facts.st_mtime_ns)


def encoding_of(head: bytes, name: str) -> str:
    """By the first bytes. Raises Unusable for what is no text."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    for magic, what in MAGIC.items():
        if head.startswith(magic):
            raise Unusable(
                f"{name} is {what}, not text.", "Unpack or convert it, and give it the ending of what it is."
            )
    if len(head) >= 8 and head.count(0) > 0.3 * len(head):
        raise Unusable(f"{name} is not text, or UTF-16 without its mark.", "Save it as UTF-8.")
    if len(head) >= 32 and len(head) - len(head.translate(None, CONTROLS)) > 0.1 * len(head):
        raise Unusable(f"{name} is a binary file, not text.", "Give a text file in UTF-8.")
    return "utf-8"


def zstd(raw: IO[bytes]) -> Any:
    import pyarrow  # late: most files need none of it

    return pyarrow.CompressedInputStream(raw, "zstd")


class OpenFile:
    """A file being read as text. `position` counts bytes as they lie on the disk, packed or not."""

    def __init__(self, file: SourceFile, newline: str | None = None) -> None:
        self.raw = file.path.open("rb")
        unpacked: Any = PACKINGS[file.packing](self.raw) if file.packing else self.raw
        buffer = io.BufferedReader(unpacked)
        with reading(file.name):
            encoding = encoding_of(buffer.peek(HEAD)[:HEAD], file.name)
        self.text: IO[str] = io.TextIOWrapper(buffer, encoding=encoding, errors=UNREADABLE, newline=newline)

    def position(self) -> int:
        return self.raw.tell()

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.text.close()
        self.raw.close()


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Says which file is damaged, in whatever way its reader noticed."""
    try:
        yield
    except Exception as error:
        damaged = isinstance(error, EOFError | zlib.error | lzma.LZMAError) or "pyarrow" in type(error).__module__
        if damaged or (type(error) in (OSError, gzip.BadGzipFile) and getattr(error, "errno", None) is None):
            said = str(error).strip().partition("\n")[0].rstrip(".")
            raise CorruptData(f"{name} is damaged or cut off: {said}.", "Fetch or make the file again.") from error
        raise


def clean(text: str, counts: Counts) -> str:
    try:
        text.encode()  # much faster than a search, and nearly always all there is to do
    except UnicodeEncodeError:
        text, n = SURROGATES.subn("\ufffd", text)
        counts.replaced_characters += n
    return text


def pieces(text: str, counts: Counts) -> Iterator[str]:
    """A text as documents of at most LONGEST characters, cut at white space where there is some near the end."""
    while len(text) > LONGEST:
        end = cut_place(text)
        yield text[:end]
        text = text[end:]
        counts.cut_pieces += 1
    yield text


def cut_place(text: str) -> int:
    late = LONGEST - LONGEST // 64
    return max(text.rfind("\n", late, LONGEST), text.rfind(" ", late, LONGEST)) + 1 or LONGEST


def text_documents(file: SourceFile, opened: OpenFile, counts: Counts) -> Iterator[str]:
    """A block between blank lines is a document; in a file without blank lines between text, each line is."""
    with OpenFile(file) as ahead:
        by_block = has_blocks(ahead.text)
    held, line_begins = "", True
    while part := opened.text.readline(LONGEST):
        ends = part.endswith("\n")
        if line_begins and ends and by_block and part.isspace():
            yield from flushed(held)
            held = ""
            continue
        line_begins = ends
        held += part
        while len(held) > LONGEST:
            end = cut_place(held)
            yield held[:end]
            held = held[end:]
            counts.cut_pieces += 1
        if ends and not by_block:
            yield from flushed(held)
            held = ""
    yield from flushed(held)


def flushed(held: str) -> Iterator[str]:
    if text := held.strip("\n"):
        yield text


def has_blocks(stream: IO[str]) -> bool:
    """Is there a blank line with text before and after it?"""
    text_before = blank_between = False
    line_begins = True
    while part := stream.readline(2**16):
        blank = part.isspace()
        if not blank and blank_between:
            return True
        blank_between = blank_between or (text_before and blank and line_begins and part.endswith("\n"))
        text_before = text_before or not blank
        line_begins = part.endswith("\n")
    return False
