"""Which document each token belongs to: the documents of a text are drawn by chance, its tokens are not."""

import torch
from torch import Tensor

from jobs.ml.sequences import Batch
from jobs.ml.tokens import TokenShards


class Boundaries:
    """Numbers the documents of a split from its beginning. `unit` says what is numbered: sequences, where nothing
    tells documents apart (packed without a separator, long ones in several windows, or tokenized before separators
    were noted)."""

    def __init__(self, shards: TokenShards) -> None:
        frame = shards.frame or {"before": 0, "after": 0, "between": []}
        self.before: int = frame["before"]
        self.after: int = frame["after"]
        self.between: int | None = frame["between"][0] if frame["between"] and shards.layout == "packed" else None
        alone = shards.layout == "padded" and shards.stride is None
        self.unit = "documents" if alone or self.between is not None else "sequences"
        self.ended = 0  # separators in the batches that came before

    def of(self, read: Batch) -> Tensor:
        """int64 [B, T]. Packed documents go on from row to row: batches come in the order of the text."""
        if self.between is None:
            return read.numbers[:, None].expand_as(read.ids)
        ends = torch.zeros_like(read.ids)
        content = slice(self.before, read.ids.shape[1] - self.after)
        ends[:, content] = (read.ids[:, content] == self.between).long()
        numbers = ends.flatten().cumsum(0).view_as(ends) - ends + self.ended
        self.ended += int(ends.sum())
        return numbers
