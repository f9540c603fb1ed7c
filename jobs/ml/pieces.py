"""Documents cut to pieces that can be tokenized in bounded memory, gathered to batches."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jobs.ml.chat import Span
from jobs.ml.prepare import Document

PIECE = 50_000  # characters tokenized at once; a longer document is cut, at white space where there is some
BATCH = 500_000  # characters handed to the tokenizer together
SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Piece:
    number: int  # of the document
    text: str
    end: int  # characters of the document up to here
    last: bool
    document: Document

    def counted(self) -> list[Span] | None:
        """The characters of this piece that may be counted; None: all."""
        if self.document.counted is None:
            return None
        start = self.end - len(self.text)
        within = ((max(a, start) - start, min(b, self.end) - start) for a, b in self.document.counted)
        return [(a, b) for a, b in within if a < b]


def pieces(documents: Iterable[Document], number: int, start: int) -> Iterator[Piece]:
    """The documents from this number on, the first of them from character `start`."""
    for index, document in enumerate(documents, number):
        text = document.text
        while True:
            end = cut(text, start)
            yield Piece(index, clean(text[start:end]), end, end == len(text), document)
            if end == len(text):
                break
            start = end
        start = 0


def cut(text: str, start: int) -> int:
    """Where a piece that begins at `start` ends: before white space if there is some in its last tenth."""
    end = start + PIECE
    if end >= len(text):
        return len(text)
    space = max(text.rfind(" ", end - PIECE // 10, end), text.rfind("\n", end - PIECE // 10, end))
    return space if space > start else end


def clean(text: str) -> str:
    """Lone surrogates are no characters and have no UTF-8: the replacement character takes their place."""
    return text if text.isascii() else SURROGATES.sub("\ufffd", text)


def batches(stream: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    characters = 0
    for piece in stream:
        batch.append(piece)
        characters += len(piece.text) + 100  # empty documents cost something too
        if characters >= BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
