"""Rows of one length from the tokens of documents.

Until it stands in a row a token is a word of 32 bits: its id, and the highest bit where it is never to be counted
(see TokenConfig). A place that holds no token is PADDING.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jobs.ml.framing import Framing
from jobs.ml.token_config import TokenConfig

MASKED = np.uint32(2**31)
PADDING = np.uint32(2**32 - 1)


@dataclass(frozen=True)
class Rows:
    ids: np.ndarray  # uint32 [n, T]
    special: np.ndarray  # bool [n, T]: special tokens and all that is masked
    masked: np.ndarray  # bool [n, T]: never counted: padding, what a window repeats, other roles
    lengths: np.ndarray  # int64 [n]: tokens before the padding


class Layout:
    """Content of rows, `payload` words each, from documents that come in pieces."""

    def __init__(self, frame: Framing, config: TokenConfig) -> None:
        self.frame, self.config = frame, config
        self.length = config.context_length
        self.payload = self.length - frame.overhead
        self.table = frame.mask_table()
        self.between = np.asarray(frame.between, dtype=np.uint32)
        self.open = np.empty(0, dtype=np.uint32)  # padded: of the document that has been begun
        self.cut = 0  # padded: tokens left out because their document is longer than a row

    def arrange(self, words: np.ndarray, last: bool, empty: bool) -> Iterator[np.ndarray]:
        """The words of a piece as they follow each other in rows; `empty`: its document has no token."""
        if self.config.layout == "packed":
            yield words
            if last and not empty:
                yield self.between
            return
        yield from self.cut_off(words) if self.config.stride is None else self.windows(words, self.config.stride)
        if last and len(self.open):
            yield np.append(self.open, np.full(self.payload - len(self.open), PADDING))
        if last:
            self.open = self.open[:0]

    def cut_off(self, words: np.ndarray) -> Iterator[np.ndarray]:
        room = self.payload - len(self.open)
        self.cut += max(0, len(words) - room)
        self.open = np.append(self.open, words[:room])
        yield from ()

    def windows(self, words: np.ndarray, stride: int) -> Iterator[np.ndarray]:
        """Whole windows, as long as more tokens follow."""
        parts, self.open = np.append(self.open, words), self.open[:0]
        step = self.payload - stride
        start = 0
        while len(parts) - start > self.payload:
            yield parts[start : start + self.payload].copy()
            start += step
            parts[start : start + stride] |= MASKED  # was counted in the window before
        self.open = parts[start:].copy()

    def rows(self, content: np.ndarray) -> Rows:
        """content [n * payload]"""
        content = content.reshape(-1, self.payload)
        padding, start = content == PADDING, len(self.frame.before)
        lengths = self.length - padding.sum(axis=1)
        words = np.full((len(content), self.length), PADDING)
        words[:, :start] = self.frame.before
        words[:, start : start + self.payload] = content
        for place, token in enumerate(self.frame.after):  # right behind the content, before the padding
            words[np.arange(len(words)), lengths - len(self.frame.after) + place] = token
        filler = words == PADDING
        masked = (words & MASKED).astype(bool)
        ids = np.where(filler, np.uint32(self.frame.padding), words & ~MASKED)
        return Rows(ids, self.table[ids] | masked, masked, lengths)

    def unfinished(self, content: np.ndarray) -> Rows:
        """The row that content [less than payload] has begun."""
        return self.rows(np.append(content, np.full(self.payload - len(content), PADDING)))
