"""Gated: Rajamanoharan et al. 2024, Improving dictionary learning with gated sparse autoencoders, arXiv:2404.16014."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.ml.architectures.standard import Standard
from jobs.ml.sae import Moment, Sae, Seen, Shape, Term, squared_error
from jobs.ml.support import Support


class Gated(Standard):
    """Whether a latent is active is decided by a = (x - b_dec) W_enc^T + b_enc > 0, how much by relu(exp(r_mag) (a -
    b_enc) + b_mag). The gate learns from the penalty, and from an error of its own; the decoder from neither: it would
    shrink, r_mag would make up for it, and many latents would stay active at no price.

    Decoder rows are brought back to a norm of 1 after each step, as in the paper, but gradients are not projected: were
    norms as free as r_mag, the gate would have to follow two scales that move at once. Its error and penalty count less
    than there: at full weight many gates close early and never open again."""

    architecture = "gated"
    initial_norms: ClassVar[tuple[float, float]] = (0.3, 1.0)

    def __init__(self, d_in: int, width: int, **shape: Unpack[Shape]) -> None:
        super().__init__(d_in, width, **shape)
        self.r_mag = nn.Parameter(torch.zeros(width))
        self.b_mag = nn.Parameter(torch.zeros(width))

    def activate(self, a: Tensor, support: Support) -> Tensor:
        scale = self.r_mag.exp()
        magnitude = torch.addcmul(support.at(self.b_mag - self.b_enc * scale), a, support.at(scale))
        return torch.where(a > 0, magnitude.relu_(), 0.0)

    def terms(self, seen: Seen, moment: Moment) -> list[Term]:
        config, gate = moment.config, seen.a.relu()
        share = float(config.options["gate_coefficient"])
        by_gate = seen.support.decode(gate, self.W_dec.detach()) + self.bypass(seen.x).detach()
        l1 = gate.sum() / len(seen.x)
        return [
            ("l1", share * config.warmed("l1_coefficient", moment.step), l1),
            ("gate", share, squared_error(seen.y, by_gate)),
        ]

    @torch.no_grad()
    def constrain(self) -> None:
        F.normalize(self.W_dec, dim=1, out=self.W_dec)

    def inference(self, norms: Tensor, unit: Tensor) -> Sae:
        same = Gated(self.d_in, self.width, **self.shape | {"folded": True})
        same.r_mag.data.copy_(self.r_mag)
        same.b_mag.data.copy_(self.b_mag * norms)
        return same
