"""ReLU + L1: Bricken et al. 2023, Towards monosemanticity, with the penalty weighted by the decoder norms as in
Anthropic's Circuits Updates of April 2024.
"""

import torch
from torch import Tensor

from jobs.ml.sae import Moment, Sae, Seen, Term
from jobs.ml.selection import above_floor
from jobs.ml.support import Support


class Standard(Sae):
    architecture = "standard"

    def support(self, x: Tensor, dtype: torch.dtype | None = None) -> Support:
        return above_floor(x, self.encoder(), 0.0, dtype)

    def terms(self, seen: Seen, moment: Moment) -> list[Term]:
        l1 = seen.support.per_latent(seen.f) @ self.decoder_norms() / len(seen.x)
        return [("l1", moment.config.warmed("l1_coefficient", moment.step), l1)]
