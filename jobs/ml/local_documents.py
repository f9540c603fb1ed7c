"""The documents of files on this machine, whatever their format."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from jobs.ml.conversations import Document, Shape, plain, recognise
from jobs.ml.encodings import first_unreadable, readings
from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.sieve import Sieve, Sieved
from jobs.ml.source_files import TABLES, find_files
from jobs.ml.store import sha256
from jobs.ml.table_files import table_head, table_rows
from jobs.ml.text_files import OpenFile, SourceFile, reading, text_documents
from jobs.ml.text_rows import LOOKED_AT, Columns, Row, as_numbers, choose_column, columns_of, csv_rows, json_rows

MOST_UNREADABLE = 0.01  # of a file's characters; more means another encoding, not damage
ENOUGH = 2**24  # characters after which a wrong encoding is noticed before the end of a file
ROWS = {"json": json_rows, "csv": csv_rows}
TEXT = plain("text")  # what files of the format "text" hold


class LocalDocuments(Sieved):
    """`counts`, `position` and `read_whole` are those of what `groups` has given so far."""

    unit, commit = "bytes", ""

    def __init__(
        self,
        source: Path,
        text_column: str = "",
        *,
        encoding: str = "",
        preference: str = "chosen",
        skip_broken: bool = False,
        deduplicate: bool = False,
    ) -> None:
        self.source, self.encoding = source, encoding
        self.sieve = Sieve(skip_broken, deduplicate)
        self.files = find_files(source)
        self.mark = [[file.name, file.size, file.changed_ns] for file in self.files]
        self.total = sum(file.size for file in self.files)
        self.largest = self.total if not any(file.packing or file.member for file in self.files) else 0
        self.columns, self.shape = self.looked_at(text_column, preference)
        self.read_whole: set[str] = set()
        self.read_bytes = 0
        self.here: Callable[[], float] = lambda: 0

    def looked_at(self, text_column: str, preference: str) -> tuple[Columns, Shape]:
        """What the first file of each format holds, which must be the same. Raises Unusable."""
        seen = {format: self.look(format, text_column, preference) for format in {f.format: None for f in self.files}}
        tables = [found for format, found in seen.items() if format != "text"]
        if not tables:
            return seen["text"][0], TEXT
        columns, shape, first = tables[0]
        for _, other, name in tables[1:]:
            if (other.name, other.columns) != (shape.name, shape.columns):
                said = f"{first} has its {shape.spoken}, {name} its {other.spoken}: they cannot be one dataset."
                raise Unusable(said, "Name a column that both have, or give one format at a time.", "text_column")
        if shape.conversations and "text" in seen:
            said = f"{first} holds conversations, {seen['text'][2]} plain text: they cannot be one dataset."
            raise Unusable(said, "Give one of the two, and mix the datasets afterwards.")
        return columns, shape

    def look(self, format: str, text_column: str, preference: str) -> tuple[Columns, Shape, str]:
        """Columns, shape and name of the first file of this format that can be read."""
        files = [file for file in self.files if file.format == format]
        for file in files:
            try:
                columns, rows = self.head(file)
            except (CorruptData, Unusable):
                if not self.sieve.skip_broken or file is files[-1]:
                    raise
                continue  # it is counted when its turn comes
            break
        only_text = text_column if format != "text" or len(files) == len(self.files) else ""
        shape = recognise(rows, text_column, preference) if format != "text" else None
        return columns, shape or plain(choose_column(columns, only_text, file.name, format == "csv")), file.name

    def head(self, file: SourceFile) -> tuple[Columns, list[Row]]:
        if file.format == "text":
            return [{"name": "text", "type": "text"}], []
        if file.format in TABLES:
            return table_head(file)
        with self.opened(file) as opened, reading(file.name):
            found = ROWS[file.format](opened, file.name, Sieve(self.sieve.skip_broken).broken)
            rows = [row for _, row in islice(found, LOOKED_AT)]
        if not rows:
            raise Unusable(f"{file.name} has no rows.")
        return columns_of(as_numbers(rows) if file.format == "csv" else rows), rows

    def opened(self, file: SourceFile) -> OpenFile:
        return OpenFile(file, "" if file.format == "csv" else None, self.encoding)

    def position(self) -> float:
        """Bytes read, of `total`."""
        return self.read_bytes + self.here()

    def state(self) -> None:
        """Files are read again from the start: what was taken from them is counted, and skipped."""

    def groups(self, state: None = None) -> Iterator[list[Document]]:
        """The documents of one row after the other, none of many. Raises CorruptData, Unusable."""
        for file in self.files:
            yield from self.documents(file)
            if file.path.stat().st_mtime_ns != file.changed_ns:
                raise Unusable(f"{file.name} was changed while it was read.", "Try again when it is at rest.")
            self.read_whole.add(file.name)
            self.read_bytes, self.here = self.read_bytes + file.size, lambda: 0

    def documents(self, file: SourceFile) -> Iterator[list[Document]]:
        counts, before = self.counts, self.sieve.characters
        replaced, shape = counts.replaced_characters, TEXT if file.format == "text" else self.shape
        rows = self.unbroken(file)
        for where, row in rows:
            yield self.sieve.documents(row, where, shape)
            if self.sieve.characters - before > ENOUGH:
                self.check_readable(file, counts.replaced_characters - replaced, self.sieve.characters - before)
        self.check_readable(file, counts.replaced_characters - replaced, self.sieve.characters - before)

    def unbroken(self, file: SourceFile, columns: Sequence[str] = ()) -> Iterator[tuple[str, Row]]:
        """The rows of a file up to where it is damaged, if it is; with these columns at least, else with those of the
        documents."""
        try:
            yield from self.rows(file, tuple(columns) or self.shape.columns)
        except CorruptData as error:
            if not self.sieve.skip_broken:
                raise
            self.sieve.broken(error)

    def rows(self, file: SourceFile, columns: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
        if file.format in TABLES:
            for done, where, row in table_rows(file, columns, self.sieve.broken):
                self.here = lambda done=done: done * file.size  # type: ignore[misc]
                yield where, row
            return
        with self.opened(file) as opened, reading(file.name):
            self.here = opened.position
            if file.format == "text":
                for text in text_documents(file, opened, self.counts):
                    yield file.name, {"text": text}
                return
            yield from ROWS[file.format](opened, file.name, self.sieve.broken)

    def check_readable(self, file: SourceFile, replaced: int, characters: int) -> None:
        if replaced > MOST_UNREADABLE * characters:
            share = 100 * replaced / characters
            said = f"{file.name} is not in {self.encoding or 'UTF-8'}: {share:.1f} % of its characters cannot be read"
            number, line = first_unreadable(file) if file.format not in TABLES and not self.encoding else (0, b"")
            read_as = " or ".join(f"“{text}” in {encoding}" for encoding, text in readings(line).items())
            place = f", the first in line {number:,}" if number else ""
            usual = f"That line has {read_as}." if read_as else "Most western European files are in windows-1252."
            raise CorruptData(f"{said}{place}.", f"Say which encoding it is in. {usual}")

    def sources(self, advance: Callable[[int], None]) -> list[dict[str, Any]]:
        """Name, size and sha256 of the files on the disk; no sha256 of one that was not read to its end."""
        names: dict[Path, set[str]] = {}
        for file in self.files:
            names.setdefault(file.path, set()).add(file.name)
        return [
            {
                "name": path.name if path == self.source else path.relative_to(self.source).as_posix(),
                "bytes": path.stat().st_size,
                "sha256": sha256(path, advance) if inside <= self.read_whole else None,
            }
            for path, inside in names.items()
        ]
