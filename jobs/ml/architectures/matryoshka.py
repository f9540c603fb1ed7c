"""Matryoshka BatchTopK: Bussmann et al. 2025, Learning multi-level features with Matryoshka sparse autoencoders,
arXiv:2503.17547.
"""

from itertools import accumulate, pairwise
from typing import Unpack

from torch import Tensor

from jobs.ml.architectures.batch_topk import BatchTopK
from jobs.ml.sae import Seen, Shape


class Matryoshka(BatchTopK):
    """BatchTopK whose first latents, a half, a quarter … of all, must also rebuild the input alone. The errors of all
    levels are summed, as in SAELens."""

    architecture = "matryoshka"
    TAKES = ("k", "levels")

    def __init__(self, d_in: int, width: int, k: int, levels: int = 5, **shape: Unpack[Shape]) -> None:
        super().__init__(d_in, width, k, **shape)
        self.levels = levels

    @property
    def widths(self) -> list[int]:
        """Of the nested dictionaries, the smallest first; halves, rounded up."""
        return sorted({-(-self.width // 2**level) for level in range(self.levels)})

    def reconstructions(self, seen: Seen) -> list[Tensor]:
        widths = [last - first for first, last in pairwise([0, *self.widths])]
        first, *others = seen.support.decode_parts(widths, seen.f, self.W_dec)
        return list(accumulate([first + self.bypass(seen.x), *others]))
