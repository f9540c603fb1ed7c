"""Documents cut to pieces that can be tokenized in bounded memory, gathered to batches."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PIECE = 50_000  # characters tokenized at once; a longer document is cut, at white space where there is some
BATCH = 500_000  # characters handed to the tokenizer together
SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Piece:
    document: int
    text: str
    end: int  # characters of the document up to here
    last: bool


def pieces(documents: Iterable[str], document: int, start: int) -> Iterator[Piece]:
    """The documents from number `document` on, the first of them from character `start`."""
    for index, text in enumerate(documents, document):
        while True:
            end = cut(text, start)
            yield Piece(index, clean(text[start:end]), end, end == len(text))
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
