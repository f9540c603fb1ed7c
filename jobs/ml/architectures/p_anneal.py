"""p-anneal: Karvonen et al. 2024, Measuring progress in dictionary learning, arXiv:2408.00113."""

from typing import Unpack

import torch
from torch import Tensor

from jobs.ml.architectures.standard import Standard
from jobs.ml.sae import Moment, Sae, Seen, Shape, Term
from jobs.ml.support import Support, in_parts

UPDATES = 10  # of the exponent, evenly spread
LEAST = 1e-6  # below it x^p is taken for 0: its slope has no bound


class PAnneal(Standard):
    """ReLU, and the penalty sum (f_i ||W_dec_i||)^p: p falls from 1, where it is L1, toward 0, where it counts. At each
    fall the coefficient is scaled so that the penalty of the batch at hand stays what it was."""

    architecture = "p_anneal"

    def __init__(self, d_in: int, width: int, **shape: Unpack[Shape]) -> None:
        super().__init__(d_in, width, **shape)
        self.p: Tensor
        self.register_buffer("p", torch.ones((), dtype=torch.float64))
        self.held: Tensor  # what the coefficient is multiplied with
        self.register_buffer("held", torch.ones((), dtype=torch.float64))

    def exponent(self, moment: Moment) -> float:
        options, steps = moment.config.options, moment.config.steps
        start, end = float(options["anneal_from"]) * steps, float(options["p_end"])
        falls = max(0, int((moment.step - start) / max(1.0, steps - start) * (UPDATES + 1)))
        return 1 + (end - 1) * min(UPDATES, falls) / UPDATES

    @torch.no_grad()
    def observe(self, x: Tensor, support: Support, moment: Moment) -> None:
        p = self.exponent(moment)
        if p == self.p:
            return
        before, after = x.new_zeros(2)
        for own, [part] in in_parts(moment.config.part_of(len(x)), support, x):
            f = self.activate(own.encode(part, self.encoder()), own)
            before += self.penalty(f, own, float(self.p))
            after += self.penalty(f, own, p)
        self.ranks.sum(before, after)
        if before > 0 and after > 0:
            self.held *= before / after
        self.p.fill_(p)

    def penalty(self, f: Tensor, support: Support, p: float) -> Tensor:
        written = (f * support.at(self.decoder_norms())).clamp_min(LEAST)
        return (written.pow(p) - LEAST**p).sum()

    def terms(self, seen: Seen, moment: Moment) -> list[Term]:
        weight = moment.config.warmed("l1_coefficient", moment.step) * float(self.held)
        return [("lp", weight, self.penalty(seen.f, seen.support, float(self.p)) / len(seen.x))]

    def inference(self, norms: Tensor, unit: Tensor) -> Sae:
        return Standard(self.d_in, self.width, **self.shape | {"folded": True})
