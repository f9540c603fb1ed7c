"""What both files and the hub do to a row on its way to documents."""

from dataclasses import asdict
from typing import Any

from jobs.ml.conversations import Document, Message, Shape, parts, text_of
from jobs.ml.duplicates import Digests
from jobs.ml.errors import CorruptData
from jobs.ml.text_files import Counts, clean, pieces
from jobs.ml.text_rows import Row

FIRST = 5  # places named of those that were broken


class Sieve:
    """Lets through what is clean, not empty and, if asked for, new; counts the rest."""

    def __init__(self, skip_broken: bool = False, deduplicate: bool = False) -> None:
        self.skip_broken = skip_broken
        self.counts, self.characters = Counts(), 0
        self.seen = Digests() if deduplicate else None

    def broken(self, error: CorruptData) -> None:
        """Raises it, or counts it and notes where the first of them are."""
        if not self.skip_broken:
            hint = f"{error.hint} Or skip what is broken.".strip()
            raise CorruptData(str(error), hint) from error
        self.counts.broken_skipped += 1
        if len(self.counts.broken_first) < FIRST:
            self.counts.broken_first.append(str(error)[:500])

    def documents(self, row: Row, where: str, shape: Shape) -> list[Document]:
        try:
            found = shape.read(row, where)
        except CorruptData as error:
            self.broken(error)
            return []
        cut: list[Document] = [*(pieces(found, self.counts) if isinstance(found, str) else parts(found, self.counts))]
        return [document for document in map(self.cleaned, cut) if self.wanted(document)]

    def cleaned(self, document: Document) -> Document:
        if isinstance(document, str):
            text = clean(document, self.counts)
            self.characters += len(text)
            return text
        said: list[Message] = []
        for message in document:
            content = clean(message["content"], self.counts)
            self.characters += len(content)
            said.append({"role": message["role"], "content": content})
        kept = [message for message in said if message["content"].strip()]
        self.counts.empty_messages_dropped += len(said) - len(kept)
        return kept

    def wanted(self, document: Document) -> bool:
        if not document or (isinstance(document, str) and document.isspace()):
            self.counts.empty_dropped += 1
            return False
        if self.seen is not None and not self.seen.add(text_of(document)):
            self.counts.duplicates_dropped += 1
            return False
        return True

    def state(self) -> dict[str, Any]:
        return asdict(self.counts)

    def resume(self, counts: dict[str, Any]) -> None:
        self.counts = Counts(**counts)


class Sieved:
    """A source of documents that go through a sieve, and what it tells of them."""

    sieve: Sieve

    @property
    def counts(self) -> Counts:
        return self.sieve.counts

    def told(self) -> dict[str, Any]:
        return self.counts.told()

    def told_parts(self) -> list[dict[str, Any]]:
        """Of a mixture, what each part gave."""
        return []
