"""Crosscoder: Lindsey et al. 2024, Sparse crosscoders for cross-layer features and model diffing, Anthropic."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from jobs.ml.architectures.topk import TopK
from jobs.ml.sae import Shape


class Crosscoder(TopK):
    """TopK over the tensors of several sites side by side, x [B, D_1 + D_2 + ...]: one code rebuilds them all. A latent
    counts with the sum of the norms of what it writes at each site."""

    architecture = "crosscoder"
    TAKES = ("k", "parts")

    def __init__(self, d_in: int, width: int, k: int, parts: Sequence[int] = (), **shape: Unpack[Shape]) -> None:
        """parts: the widths of the sites."""
        super().__init__(d_in, width, k, **shape)
        self.parts = tuple(parts) or (d_in,)

    def decoder_norms(self) -> Tensor:
        if self.is_folded:
            return torch.ones_like(self.b_enc)
        norms: Tensor = torch.stack([part.norm(dim=1) for part in self.W_dec.split(self.parts, dim=1)]).sum(0)
        return norms
