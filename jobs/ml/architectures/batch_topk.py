"""BatchTopK: Bussmann et al. 2024, BatchTopK sparse autoencoders, arXiv:2412.06410."""

from typing import Unpack

import torch
from torch import Tensor

from jobs.ml.architectures.jumprelu import JumpReLU
from jobs.ml.architectures.topk import TopK
from jobs.ml.sae import Moment, Sae, Shape
from jobs.ml.selection import largest_of_batch
from jobs.ml.support import Sparse, Support

# Of the way that the threshold goes to each batch's least active value, as in SAELens; the first hundred batches count
# alike, so that a short run ends with a threshold of its own and not of its beginning.
MOVES = 0.01


class BatchTopK(TopK):
    """The k B largest positive a_i ||W_dec_i|| of the whole batch survive. What a row keeps would depend on the others:
    once trained it is a JumpReLU, with the running mean of the least values that survived as its threshold."""

    architecture = "batchtopk"

    def __init__(self, d_in: int, width: int, k: int, **shape: Unpack[Shape]) -> None:
        super().__init__(d_in, width, k, **shape)
        self.threshold: Tensor
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))

    def support(self, x: Tensor, dtype: torch.dtype | None = None) -> Sparse:
        support, self.least = largest_of_batch(x, self.weighted_encoder(), self.k * len(x), dtype, self.ranks)
        return support

    def observe(self, x: Tensor, support: Support, moment: Moment) -> None:
        self.threshold += max(MOVES, 1 / (moment.step + 1)) * (self.least - self.threshold)

    def inference(self, norms: Tensor, unit: Tensor) -> Sae:
        same = JumpReLU(self.d_in, self.width, **self.shape | {"folded": True})
        same.threshold.data.fill_(float(self.threshold / unit))
        return same
