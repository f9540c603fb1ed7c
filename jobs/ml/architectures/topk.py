"""TopK: Gao et al. 2024, Scaling and evaluating sparse autoencoders, arXiv:2406.04093."""

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from jobs.ml.sae import TINY, Sae, Shape
from jobs.ml.selection import largest_of_rows
from jobs.ml.support import Sparse


class TopK(Sae):
    """The k largest a_i ||W_dec_i|| of each row survive, if positive."""

    architecture = "topk"
    TAKES: ClassVar[tuple[str, ...]] = ("k",)

    def __init__(self, d_in: int, width: int, k: int, **shape: Unpack[Shape]) -> None:
        super().__init__(d_in, width, **shape)
        self.k = k

    def support(self, x: Tensor, dtype: torch.dtype | None = None) -> Sparse:
        chosen = largest_of_rows(x, self.weighted_encoder(), self.k, dtype, signed=self.signed)
        if chosen.values is not None and not self.is_folded:
            chosen.values /= chosen.at(self.decoder_norms().detach().clamp_min(TINY))
        return chosen
