"""Files with text, as people have them: packed or not, in what encoding, and long texts cut to documents."""

import bz2
import codecs
import errno
import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from jobs.ml.errors import CorruptData, Unusable

LONGEST = 2**20  # characters of a document; a longer text becomes several
LONGEST_LINE = 2**26  # characters of a line of a table, which must be read as a whole
MOST_RATIO = 250  # of what a packed file unpacks to; text is packed to a tenth, and rarely below a hundredth
TRUSTED = 2**26  # bytes that a packed file may unpack to whatever the ratio
FORMATS = {
    ".txt": "text", ".text": "text", ".md": "text",
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
PACKINGS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda raw: zstd(raw),
}
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
UNREADABLE, UNREADABLE_MARK = "mistudio.unreadable", "\udc80"
SURROGATES = re.compile("[\ud800-\udfff]")

# What cannot be decoded becomes a lone surrogate, which no text may have: `clean` counts and replaces both alike.
codecs.register_error(UNREADABLE, lambda error: (UNREADABLE_MARK, error.end))  # type: ignore[attr-defined]


@dataclass
class Counts:
    """What was done to the texts on their way."""

    empty_dropped: int = 0
    cut_pieces: int = 0  # documents that are the continuation of the one before
    replaced_characters: int = 0
    duplicates_dropped: int = 0
    empty_messages_dropped: int = 0
    broken_skipped: int = 0  # rows, or what else could not be read: a row group, the rest of a file
    broken_first: list[str] = field(default_factory=list)  # where the first of them are, and what is wrong

    def told(self) -> dict[str, Any]:
        """For a page: the last four where there is something to tell."""
        usual = ("empty_dropped", "cut_pieces", "replaced_characters")
        return {name: value for name, value in vars(self).items() if value or name in usual}


@dataclass(frozen=True)
class Member:
    """A file inside an archive."""

    name: str
    size: int  # bytes
    packed_size: int  # of them in the archive
    open: Callable[[], Any]

    def packed(self, unpacked: int) -> float:
        """About how many bytes of the archive have been read once so many came out of it."""
        return unpacked * self.packed_size / self.size


@dataclass(frozen=True)
class SourceFile:
    path: Path  # of the archive, where it is part of one
    name: str  # relative to the folder that was chosen
    format: str
    size: int  # bytes on the disk
    changed_ns: int
    member: Member | None = field(default=None, compare=False)

    @property
    def packing(self) -> str:
        return self.path.suffix.lower() if self.member is None and self.path.suffix.lower() in PACKINGS else ""


def encoding_of(head: bytes, name: str, chosen: str = "") -> str:
    """By the first bytes, where they say it or none was chosen. Raises Unusable for what is no text."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    for magic, what in MAGIC.items():
        if head.startswith(magic):
            raise Unusable(
                f"{name} is {what}, not text.", "Unpack or convert it, and give it the ending of what it is."
            )
    if chosen:
        return chosen
    if len(head) >= 8 and head.count(0) > 0.3 * len(head):
        said = f"{name} is not text, or UTF-16 without its mark."
        raise Unusable(said, "Save it as UTF-8, or set the encoding to utf-16-le.", "encoding")
    if len(head) >= 32 and len(head) - len(head.translate(None, CONTROLS)) > 0.1 * len(head):
        raise Unusable(f"{name} is a binary file, not text.", "Give a text file in UTF-8.")
    return "utf-8"


def zstd(raw: IO[bytes]) -> Any:
    import pyarrow  # late: most files need none of it

    return pyarrow.CompressedInputStream(raw, "zstd")


class Unpacked(io.RawIOBase):
    """What comes out of a packed file. Raises Unusable where that is more than text can be."""

    def __init__(self, unpacker: Any, packed: IO[bytes], name: str) -> None:
        self.unpacker, self.packed, self.name, self.bytes = unpacker, packed, name, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n: int = self.unpacker.readinto(buffer)
        self.bytes += n
        if self.bytes > TRUSTED and self.bytes > MOST_RATIO * self.packed.tell():
            raise Unusable(
                f"{self.name} unpacks to more than {MOST_RATIO} times its size, which text never does.",
                "If it is right, unpack it yourself and give what comes out.",
            )
        return n


class OpenFile:
    """A file being read as text. `position` counts bytes as they lie on the disk, packed or not."""

    def __init__(self, file: SourceFile, newline: str | None = None, encoding: str = "") -> None:
        self.member = file.member
        self.raw: Any = self.member.open() if self.member else file.path.open("rb")
        unpacked: Any = Unpacked(PACKINGS[file.packing](self.raw), self.raw, file.name) if file.packing else self.raw
        buffer = io.BufferedReader(unpacked)
        with reading(file.name):
            self.encoding = encoding_of(buffer.peek(HEAD)[:HEAD], file.name, encoding)
        self.text: IO[str] = io.TextIOWrapper(buffer, encoding=self.encoding, errors=UNREADABLE, newline=newline)

    def position(self) -> float:
        return self.member.packed(self.raw.tell()) if self.member else self.raw.tell()

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
        packed = EOFError | zlib.error | lzma.LZMAError | zipfile.BadZipFile | tarfile.TarError
        odd = UnicodeDecodeError | NotImplementedError  # names and versions in a table of contents
        damaged = isinstance(error, packed | odd) or "pyarrow" in type(error).__module__
        outside = getattr(error, "errno", None) in (None, errno.EINVAL)  # of the file: at a place that none has
        if damaged or (type(error) in (OSError, gzip.BadGzipFile) and outside):
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


def pieces(text: str, counts: Counts, longest: int = 0) -> Iterator[str]:
    """A text as documents of at most `longest`, else LONGEST, characters, cut at white space near the end if any."""
    longest = longest or LONGEST
    while len(text) > longest:
        end = cut_place(text, longest)
        yield text[:end]
        text = text[end:]
        counts.cut_pieces += 1
    yield text


def cut_place(text: str, longest: int) -> int:
    late = longest - longest // 64
    return max(text.rfind("\n", late, longest), text.rfind(" ", late, longest)) + 1 or longest


def text_documents(file: SourceFile, opened: OpenFile, counts: Counts) -> Iterator[str]:
    """A block between blank lines is a document; in a file without blank lines between text, each line is."""
    with OpenFile(file, encoding=opened.encoding) as ahead:
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
            end = cut_place(held, LONGEST)
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
