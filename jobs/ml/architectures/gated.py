"""Gated: Rajamanoharan et al. 2024, Improving dictionary learning with gated sparse autoencoders, arXiv:2404.16014."""

from typing import Unpack

import torch
from torch import Tensor, nn

from jobs.ml.architectures.standard import Standard
from jobs.ml.sae import Moment, Sae, Seen, Shape, Term, squared_error
from jobs.ml.support import Support


class Gated(Standard):
    """Whether a latent is active is decided by a = (x - b_dec) W_enc^T + b_enc > 0, how much by relu(exp(r_mag) (a -
    b_enc) + b_mag). The gate learns from the penalty, and from an error of its own; the decoder from neither: it would
    shrink, r_mag would make up for it, and many latents would stay active at no price."""

    architecture = "gated"

    def __init__(self, d_in: int, width: int, **shape: Unpack[Shape]) -> None:
        super().__init__(d_in, width, **shape)
        self.r_mag = nn.Parameter(torch.zeros(width))
        self.b_mag = nn.Parameter(torch.zeros(width))

    def activate(self, a: Tensor, support: Support) -> Tensor:
        scale = self.r_mag.exp()
        magnitude = torch.addcmul(support.at(self.b_mag - self.b_enc * scale), a, support.at(scale))
        return torch.where(a > 0, magnitude.relu_(), 0.0)

    def terms(self, seen: Seen, moment: Moment) -> list[Term]:
        gate = seen.a.relu()
        by_gate = seen.support.decode(gate, self.W_dec.detach()) + self.bypass(seen.x).detach()
        l1 = seen.support.per_latent(gate) @ self.decoder_norms().detach() / len(seen.x)
        weight = moment.config.warmed("l1_coefficient", moment.step)
        return [("l1", weight, l1), ("gate", 1.0, squared_error(seen.y, by_gate))]

    def inference(self, norms: Tensor, unit: Tensor) -> Sae:
        same = Gated(self.d_in, self.width, **self.shape | {"folded": True})
        same.r_mag.data.copy_(self.r_mag)
        same.b_mag.data.copy_(self.b_mag * norms)
        return same
