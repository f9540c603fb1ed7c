"""The documents of files on this machine, whatever their format."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.text_files import (
    Counts,
    OpenFile,
    SourceFile,
    clean,
    find_files,
    pieces,
    reading,
    text_documents,
)
from jobs.ml.text_rows import (
    LOOKED_AT,
    TYPES,
    Columns,
    as_numbers,
    choose_column,
    columns_of,
    csv_rows,
    json_rows,
    parquet_columns,
    parquet_texts,
)

MOST_UNREADABLE = 0.01  # of a file's characters; more means another encoding, not damage
CHUNK = 2**20
ENOUGH = 2**24  # characters after which a wrong encoding is noticed before the end of a file
ROWS = {"json": json_rows, "csv": csv_rows}


class LocalDocuments:
    """`counts`, `position` and `read_whole` are those of what `groups` has given so far."""

    unit, commit = "bytes", ""

    def __init__(self, source: Path, text_column: str = "") -> None:
        self.files = find_files(source)
        self.mark = [[file.name, file.size, file.changed_ns] for file in self.files]
        self.total = sum(file.size for file in self.files)
        self.largest = self.total if not any(file.packing for file in self.files) else 0
        self.columns = columns(self.files[0])
        first = self.files[0]
        self.column = choose_column(self.columns, text_column, first.name, only_text=first.format == "csv")
        self.counts = Counts()
        self.read_whole: set[str] = set()
        self.read_bytes = 0
        self.here: Callable[[], float] = lambda: 0

    def position(self) -> float:
        """Bytes read, of `total`."""
        return self.read_bytes + self.here()

    def state(self) -> None:
        """Files are read again from the start: what was taken from them is counted, and skipped."""

    def groups(self, state: None = None) -> Iterator[list[str]]:
        """Documents with text in them, one at a time. Raises CorruptData, Unusable."""
        for file in self.files:
            yield from self.documents(file)
            if file.path.stat().st_mtime_ns != file.changed_ns:
                raise Unusable(f"{file.name} was changed while it was read.", "Try again when it is at rest.")
            self.read_whole.add(file.name)
            self.read_bytes, self.here = self.read_bytes + file.size, lambda: 0

    def documents(self, file: SourceFile) -> Iterator[list[str]]:
        replaced, characters = self.counts.replaced_characters, 0
        for text in self.texts(file):
            text = clean(text, self.counts)
            characters += len(text)
            if not text or text.isspace():
                self.counts.empty_dropped += 1
            else:
                yield [text]
            if characters > ENOUGH:
                check_readable(file, self.counts.replaced_characters - replaced, characters)
        check_readable(file, self.counts.replaced_characters - replaced, characters)

    def texts(self, file: SourceFile) -> Iterator[str]:
        if file.format == "parquet":
            for done, values in parquet_texts(file, self.column):
                self.here = lambda done=done: done * file.size  # type: ignore[misc]
                for value in values:
                    yield from pieces(as_text(value, file.name, self.column), self.counts)
            return
        with OpenFile(file, newline="" if file.format == "csv" else None) as opened, reading(file.name):
            self.here = opened.position
            if file.format == "text":
                yield from text_documents(file, opened, self.counts)
                return
            for where, row in ROWS[file.format](opened, file.name):
                yield from pieces(as_text(row.get(self.column), where, self.column), self.counts)

    def sources(self, advance: Callable[[int], None]) -> list[dict[str, Any]]:
        """Name, size and sha256 of the files; no sha256 of one that was not read to its end."""
        return [
            {
                "name": file.name,
                "bytes": file.size,
                "sha256": digest(file, advance) if file.name in self.read_whole else None,
            }
            for file in self.files
        ]


def columns(file: SourceFile) -> Columns:
    if file.format == "text":
        return [{"name": "text", "type": "text"}]
    if file.format == "parquet":
        return parquet_columns(file)
    with OpenFile(file, newline="" if file.format == "csv" else None) as opened, reading(file.name):
        rows = [row for _, row in islice(ROWS[file.format](opened, file.name), LOOKED_AT)]
    if not rows:
        raise Unusable(f"{file.name} has no rows.")
    return columns_of(as_numbers(rows) if file.format == "csv" else rows)


def as_text(value: Any, where: str, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        kind = TYPES.get(type(value), type(value).__name__)
        raise CorruptData(f"{where}: column “{column}” holds a {kind}, not text.", "Choose another column.")
    return value


def check_readable(file: SourceFile, replaced: int, characters: int) -> None:
    if replaced > MOST_UNREADABLE * characters:
        share = 100 * replaced / characters
        raise CorruptData(
            f"{file.name} is not in UTF-8: {share:.1f} % of its characters cannot be read.",
            "Convert it, for instance with iconv -f WINDOWS-1252 -t UTF-8.",
        )


def digest(file: SourceFile, advance: Callable[[int], None]) -> str:
    from hashlib import sha256

    found = sha256()
    with file.path.open("rb") as reader:
        while chunk := reader.read(CHUNK):
            found.update(chunk)
            advance(len(chunk))
    return found.hexdigest()
