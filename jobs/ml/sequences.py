"""Token sequences in the order of the text, for passes that read each of them once."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from jobs.ml.errors import WithHint
from jobs.ml.tokens import TokenShards


@dataclass(frozen=True)
class Batch:
    numbers: Tensor  # int64 [B], of the sequences
    ids: Tensor  # int64 [B, T]
    skipped: Tensor  # bool [B, T]: in no figure
    attention: Tensor | None  # int64 [B, T], 0 at padding; None where there is none

    def to(self, device: torch.device | str) -> "Batch":
        attention = None if self.attention is None else self.attention.to(device)
        return Batch(self.numbers.to(device), self.ids.to(device), self.skipped.to(device), attention)

    def cut(self, length: int) -> "Batch":
        """Without the places from `length` on, which are padding."""
        attention = None if self.attention is None else self.attention[:, :length]
        whole = attention is None or bool(attention.all())
        return Batch(self.numbers, self.ids[:, :length], self.skipped[:, :length], None if whole else attention)

    @property
    def first(self) -> int:
        return int(self.numbers[0])

    @property
    def tokens(self) -> int:
        """Without padding."""
        return self.ids.numel() if self.attention is None else int(self.attention.sum())

    def positions(self, context_length: int) -> Tensor:
        """int64 [n]: where the tokens that count are in the split, of sequences of that length."""
        T = self.ids.shape[1]
        return self.numbers[self.places // T] * context_length + self.places % T

    @cached_property
    def places(self) -> Tensor:
        """int64 [n]: where the tokens that count are, among all B * T places."""
        return (~self.skipped.flatten()).nonzero().flatten()

    def counted(self, x: Tensor) -> Tensor:
        """[n, width]: the tokens of x [B, T, width] that count. No copy where all of them do."""
        x = x.flatten(0, 1)
        return x if len(self.places) == len(x) else x[self.places.to(x.device)]


def covering(shards: TokenShards, tokens: int) -> int:
    """How many sequences from the beginning of the split hold that many tokens: at least one, at most all.

    Raises ValueError where the split is empty.
    """
    if not shards.n_sequences:
        raise WithHint(
            f"the {shards.split} split has no sequences.", "Tokenize again with another share of held-out documents."
        )
    return min(shards.n_sequences, max(1, -(-tokens * shards.n_sequences // shards.n_tokens)))


def batches(shards: TokenShards, start: int, end: int, size: int, skip_special: bool = True) -> Iterator[Batch]:
    """The sequences start .. end - 1"""
    for first in range(start, end, size):
        yield batch(shards, np.arange(first, min(end, first + size)), skip_special)


def alike(shards: TokenShards, start: int, end: int, size: int, skip_special: bool = True) -> Iterator[Batch]:
    """The same, the longest first, each batch cut to its longest: as little padding as may be."""
    lengths = shards.lengths(range(start, end))
    order = np.argsort(-lengths, kind="stable")
    for rows in (order[at : at + size] for at in range(0, len(order), size)):
        yield batch(shards, start + rows, skip_special).cut(int(lengths[rows[0]]))


def batch(shards: TokenShards, numbers: np.ndarray, skip_special: bool = True) -> Batch:
    found = shards.read(numbers, skip_special)
    attention = None if found.attention is None else torch.from_numpy(found.attention).long()
    return Batch(
        torch.from_numpy(numbers), torch.from_numpy(found.ids).long(), torch.from_numpy(found.skipped), attention
    )
