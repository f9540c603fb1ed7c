"""Several datasets as one: interleaved by weight, each in an order that the seed decides."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jobs.ml.conversations import Document, Shape, messages, plain, text_of
from jobs.ml.documents import check_unchanged, count_documents, shards
from jobs.ml.errors import Unusable
from jobs.ml.sieve import Sieve, Sieved
from jobs.ml.store import fingerprint, read_manifest

RAN_OUT, FULL = "ran out", "reached its limit"


@dataclass(frozen=True)
class Part:
    folder: str
    name: str
    weight: float = 1.0
    max_documents: int | None = None
    max_bytes: int | None = None  # of text in UTF-8


@dataclass
class Taken:
    """Of one part, so far. What was read and not taken came before, in this part or another."""

    read: int = 0
    documents: int = 0
    bytes: int = 0
    duplicates: int = 0
    ended: str = ""  # why nothing more comes of it


@dataclass
class Strand:
    part: Part
    taken: Taken
    documents: Iterator[Document] = field(default_factory=lambda: iter(()))

    @property
    def behind(self) -> float:
        """The smaller, the more this part has yet to give to keep up with the others."""
        return self.taken.bytes / self.part.weight


class MixedDocuments(Sieved):
    """The part that is furthest behind its weight gives the next document, so that of every beginning of the mixture
    each part has its share of the bytes, but for one document.

    At the end of a part the mixture ends ("first"), or the others go on without it ("all"). Raises CorruptData for a
    part that changed, Unusable for one that is not finished."""

    unit, commit = "documents", ""

    def __init__(
        self,
        parts: list[Part],
        seed: int = 0,
        ends: str = "first",
        deduplicate: bool = True,
        max_bytes: int | None = None,
    ) -> None:
        self.parts, self.seed, self.ends, self.max_bytes = parts, seed, ends, max_bytes
        manifests = [finished(part) for part in parts]
        talking = all(manifest.get("conversations") for manifest in manifests)
        column = "messages" if talking else "text"
        self.columns = [{"name": column, "type": "conversations" if talking else "text"}]
        self.shape = Shape("conversations", ("messages",), read_messages, "messages") if talking else plain("text")
        files = [manifest["files"] for manifest in manifests]
        self.mark = [[asdict(part), fingerprint(named)] for part, named in zip(parts, files, strict=True)]
        sizes = [count_documents(part.folder) for part in parts]
        self.total = sum(min(filter(None, (part.max_documents, n))) for part, n in zip(parts, sizes, strict=True))
        self.largest = sum(facts["bytes"] for named in files for facts in named.values())
        self.sieve = Sieve(deduplicate=deduplicate)
        self.strands = [Strand(part, Taken()) for part in parts]
        self.full = False
        self.with_all_parts = 0  # documents that came before the first part ended

    def told(self) -> dict[str, Any]:
        return {"documents_with_all_parts": self.with_all_parts, "duplicates_dropped": self.counts.duplicates_dropped}

    def told_parts(self) -> list[dict[str, Any]]:
        return [{"name": strand.part.name, **asdict(strand.taken)} for strand in self.strands]

    def position(self) -> int:
        """Documents read, of `total`."""
        return sum(strand.taken.read for strand in self.strands)

    def state(self) -> dict[str, Any]:
        taken = [asdict(strand.taken) for strand in self.strands]
        return {"taken": taken, "counts": self.sieve.state(), "with_all_parts": self.with_all_parts}

    def groups(self, state: dict[str, Any] | None = None) -> Iterator[list[Document]]:
        """One document at a time, or none. With a state, those after it: the sieve has to know what came before."""
        if state:
            self.sieve.resume(state["counts"])
            self.with_all_parts = state["with_all_parts"]
            for strand, taken in zip(self.strands, state["taken"], strict=True):
                strand.taken = Taken(**taken)
        column = self.shape.columns[0]
        for number, strand in enumerate(self.strands):
            strand.documents = shuffled(strand.part.folder, column, [self.seed, number], strand.taken.read)
        while going := [strand for strand in self.strands if not strand.taken.ended]:
            whole = len(going) == len(self.strands)
            if self.full or (not whole and self.ends == "first"):
                return
            document = self.next_of(min(going, key=lambda strand: strand.behind))
            self.with_all_parts += whole and document is not None
            yield [] if document is None else [document]

    def next_of(self, strand: Strand) -> Document | None:
        """None where it came before, or nothing more is to come."""
        part, taken = strand.part, strand.taken
        document = next(strand.documents, None)
        if document is None:
            taken.ended = RAN_OUT
            return None
        text = text_of(document)
        size = len(text.encode())
        bytes_taken = sum(strand.taken.bytes for strand in self.strands)
        self.full = self.max_bytes is not None and bytes_taken + size > self.max_bytes
        if taken.documents == part.max_documents or (part.max_bytes and taken.bytes + size > part.max_bytes):
            taken.ended = FULL
        if self.full or taken.ended:
            return None
        taken.read += 1
        if self.sieve.seen is None or self.sieve.seen.add(text):
            taken.documents, taken.bytes = taken.documents + 1, taken.bytes + size
            return document
        taken.duplicates += 1
        self.counts.duplicates_dropped += 1
        return None

    def sources(self, advance: Callable[[int], None]) -> list[dict[str, Any]]:
        return [{"name": part.name, "fingerprint": mark} for part, (_, mark) in zip(self.parts, self.mark, strict=True)]


def finished(part: Part) -> dict[str, Any]:
    manifest = read_manifest(Path(part.folder))
    if manifest is None:
        raise Unusable(f"The dataset {part.name} is not finished.", "Wait for its job, or leave it out.", "parts")
    check_unchanged(part.folder)
    return manifest


def read_messages(row: dict[str, Any], where: str) -> Document:
    return messages(row.get("messages"), where)


def shuffled(folder: str, column: str, seed: list[int], start: int) -> Iterator[Document]:
    """The documents from number `start` of a seeded order on: row groups are permuted, and the documents in each.

    One row group is in memory at a time."""
    from pyarrow.parquet import ParquetFile

    places = [(path, group) for path in shards(folder) for group in range(row_groups(path))]
    for place in np.random.default_rng(seed).permutation(len(places)):
        path, group = places[place]
        with ParquetFile(path) as file:
            rows = file.metadata.row_group(group).num_rows
            if start >= rows:
                start -= rows
                continue
            documents = file.read_row_group(group, columns=[column]).column(0).to_pylist()
        for row in np.random.default_rng([*seed, int(place)]).permutation(rows)[start:]:
            yield documents[row]
        start = 0


def row_groups(path: Path) -> int:
    from pyarrow.parquet import read_metadata

    return read_metadata(path).num_row_groups
