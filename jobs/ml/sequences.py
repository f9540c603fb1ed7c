"""Token sequences in the order of the text, for passes that read each of them once."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from jobs.ml.errors import WithHint
from jobs.ml.tokens import TokenShards


def covering(shards: TokenShards, tokens: int) -> int:
    """How many sequences from the beginning of the split hold that many tokens: at least one, at most all.

    Raises ValueError where the split is empty.
    """
    if not shards.n_sequences:
        raise WithHint(
            f"the {shards.split} split has no sequences.", "Tokenize again with another share of held-out documents."
        )
    return min(shards.n_sequences, max(1, -(-tokens // shards.context_length)))


def batches(shards: TokenShards, start: int, end: int, size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(number of the first sequence, ids int64 [B, T], special bool [B, T]) for the sequences start .. end -
    1
    """
    for first in range(start, end, size):
        ids, special = shards.rows(np.arange(first, min(end, first + size)))
        yield first, torch.from_numpy(ids).long(), torch.from_numpy(special)
