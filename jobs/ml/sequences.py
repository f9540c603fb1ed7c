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
    first: int  # number of the first sequence
    ids: Tensor  # int64 [B, T]
    skipped: Tensor  # bool [B, T]: in no figure
    attention: Tensor | None  # int64 [B, T], 0 at padding; None where there is none

    def to(self, device: torch.device | str) -> "Batch":
        attention = None if self.attention is None else self.attention.to(device)
        return Batch(self.first, self.ids.to(device), self.skipped.to(device), attention)

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


def batch(shards: TokenShards, numbers: np.ndarray, skip_special: bool = True) -> Batch:
    found = shards.read(numbers, skip_special)
    attention = None if found.attention is None else torch.from_numpy(found.attention).long()
    return Batch(int(numbers[0]), torch.from_numpy(found.ids).long(), torch.from_numpy(found.skipped), attention)
