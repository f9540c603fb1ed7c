"""Documents by number, and those that match, read a row group at a time: never a whole file."""

import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

from jobs.ml.documents import shards

EXCERPT = 280  # characters of a document in a list
LEAD = 80  # of them before what was searched
SECONDS, DOCUMENTS = 2.0, 500_000  # that one search looks at, at most


@dataclass(frozen=True)
class Group:
    path: Path
    number: int  # within its file
    first: int  # document
    rows: int


@dataclass(frozen=True)
class Row:
    number: int
    characters: int
    excerpt: str
    start: int = 0  # of the excerpt within the document

    @property
    def end(self) -> int:
        return self.start + len(self.excerpt)


@dataclass(frozen=True)
class Document:
    number: int
    text: str
    messages: list[dict[str, str]] | None  # role and content, of a conversation


@dataclass(frozen=True)
class Wanted:
    """What a document must be to be found. Lengths are in characters, both ends belong to them."""

    text: str = ""
    shortest: int | None = None
    longest: int | None = None

    def __bool__(self) -> bool:
        return bool(self.text) or self.shortest is not None or self.longest is not None

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.text), re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """Of the documents from `start` up to `end`, which were looked at, those that match."""

    rows: list[Row]
    start: int
    end: int


class DocumentRows:
    """Raises FileNotFoundError where there are no documents."""

    def __init__(self, folder: Path) -> None:
        paths = shards(folder)
        if not paths:
            raise FileNotFoundError(f"{folder} holds no documents.")
        self.groups = groups(folder, paths[-1].stat().st_mtime_ns)
        self.firsts = [group.first for group in self.groups]

    def __len__(self) -> int:
        return self.groups[-1].first + self.groups[-1].rows

    def page(self, start: int, most: int) -> list[Row]:
        """The rows from number `start` on."""
        rows: list[Row] = []
        for first, texts in self.texts(start):
            for text in texts.slice(0, most - len(rows)):
                rows.append(row(first, text.as_py()))
                first += 1
            if len(rows) == most:
                break
        return rows

    def texts(self, start: int) -> Iterator[tuple[int, Any]]:
        """(number of the first, their texts as an Arrow array) from document `start` on, a row group at a time."""
        for group in self.groups[max(0, bisect_right(self.firsts, start) - 1) :]:
            skipped = max(0, start - group.first)
            if skipped < group.rows:
                yield group.first + skipped, column(group, "text").slice(skipped)

    def document(self, number: int) -> Document:
        """Raises IndexError."""
        if not 0 <= number < len(self):
            raise IndexError(f"There is no document {number:,}; the last is {len(self) - 1:,}.")
        group = self.groups[bisect_right(self.firsts, number) - 1]
        at = number - group.first
        messages = column(group, "messages")
        said = messages[at].as_py() if messages is not None else None
        return Document(number, column(group, "text")[at].as_py(), said)

    def search(
        self, wanted: Wanted, start: int, most: int, seconds: float = SECONDS, documents: int = DOCUMENTS
    ) -> Found:
        """Up to `most` that match, from number `start` on. Ends between row groups when its time or number is over."""
        rows: list[Row] = []
        until = time.monotonic() + seconds
        end = min(start, len(self))
        for first, texts in self.texts(start):
            for at in matching(texts, wanted):
                rows.append(row(first + at, texts[at].as_py(), wanted))
                if len(rows) == most:
                    return Found(rows, start, first + at + 1)
            end = first + len(texts)
            if time.monotonic() > until or end - start >= documents:
                break
        return Found(rows, start, end)

    def last_before(
        self, wanted: Wanted, number: int, seconds: float = SECONDS, documents: int = DOCUMENTS
    ) -> tuple[int | None, int]:
        """(the last match before document `number`, the document from which on was looked). Ends as `search` does."""
        until, looked = time.monotonic() + seconds, number
        for group in reversed(self.groups[: bisect_left(self.firsts, number)]):
            if time.monotonic() > until or number - looked >= documents:
                break
            looked = group.first
            if places := matching(column(group, "text").slice(0, number - group.first), wanted):
                return group.first + places[-1], looked
        return None, looked


@lru_cache(16)
def groups(folder: Path, changed_ns: int) -> list[Group]:
    """From the footers of the files. `changed_ns`: a dataset that is made again has other ones."""
    import pyarrow.parquet as parquet

    found: list[Group] = []
    first = 0
    for path in shards(folder):
        footer = parquet.read_metadata(path)
        for number in range(footer.num_row_groups):
            rows = footer.row_group(number).num_rows
            found.append(Group(path, number, first, rows))
            first += rows
    return found


def column(group: Group, name: str) -> Any:
    """As an Arrow array; None where the file has no such column."""
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(group.path) as file:
        if name not in file.schema_arrow.names:
            return None
        return file.read_row_group(group.number, columns=[name]).column(name).combine_chunks()


def matching(texts: Any, wanted: Wanted) -> list[int]:
    import pyarrow.compute as compute

    masks = []
    if wanted.text:
        masks.append(compute.match_substring(texts, wanted.text, ignore_case=True))
    if wanted.shortest is not None:
        masks.append(compute.greater_equal(compute.utf8_length(texts), wanted.shortest))
    if wanted.longest is not None:
        masks.append(compute.less_equal(compute.utf8_length(texts), wanted.longest))
    return compute.indices_nonzero(reduce(compute.and_, masks)).to_pylist()


def row(number: int, text: str, wanted: Wanted | None = None) -> Row:
    """With the part of the text that was searched, or its beginning."""
    found = wanted.pattern.search(text) if wanted and wanted.text else None
    start = max(0, found.start() - LEAD) if found else 0
    return Row(number, len(text), text[start : start + EXCERPT], start)
