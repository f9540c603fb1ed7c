"""Activations made of features that are known, to see whether an SAE finds them (Sharkey et al. 2022).

1,024 unit features in 256 dimensions, of which about 12 are active at once: x is the sum of the active ones, each by a
strength of its own. Reported are the mean max cosine (MMCS: of each feature with the decoder row nearest to it) and the
mean over a matching of one row to each feature (MCC), which a row that stands for two features cannot serve twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.ml.assignment import best_assignment
from jobs.ml.config import Member, TrainConfig
from jobs.ml.sae import Sae
from jobs.ml.sites import Site
from jobs.ml.train import Activations, Run

SITE = "ground_truth"


@dataclass
class Features:
    n: int = 1024
    dimensions: int = 256
    active: float = 12.0  # at once, in the mean
    seed: int = 0
    directions: Tensor = field(init=False)  # [n, dimensions], unit rows
    rates: Tensor = field(init=False)  # [n]: how often each is active; the commonest ten times as often as the rarest

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(self.seed)
        self.directions = F.normalize(torch.randn(self.n, self.dimensions, generator=random), dim=1)
        rates = torch.logspace(0, -1, self.n)
        self.rates = rates * self.active / rates.sum()

    def draw(self, tokens: int, seed: int) -> Tensor:
        """x [tokens, dimensions], the same for the same seed"""
        random = torch.Generator().manual_seed((self.seed + 1) * 2**32 + seed)
        on = torch.rand(tokens, self.n, generator=random) < self.rates
        strengths = 0.5 + torch.rand(tokens, self.n, generator=random)
        return (on * strengths) @ self.directions

    def recovered(self, rows: Tensor) -> dict[str, Any]:
        """Of decoder rows [M, dimensions]; mcc is None where there are fewer rows than features."""
        cosines = self.directions.double() @ F.normalize(rows.detach().double().cpu(), dim=1).T
        mcc = None
        if len(rows) >= self.n:
            matched = best_assignment(cosines.abs().numpy())
            mcc = float(cosines.abs()[torch.arange(self.n), torch.from_numpy(matched)].mean())
        best = cosines.max(1).values
        return {"mmcs": float(best.mean()), "mcc": mcc, "found": float((best > 0.9).double().mean())}


class DrawnStream:
    """What a training reads, drawn as it goes."""

    def __init__(self, features: Features, batch_tokens: int) -> None:
        self.features, self.batch_tokens = features, batch_tokens
        self.sites = {SITE: Site(SITE, features.dimensions, "", "input")}

    def identity(self) -> dict[str, Any]:
        return {"features": self.features.n, "seed": self.features.seed}

    def prepare(self, step: int) -> Iterator[None]:
        yield from ()

    def batch(self, step: int) -> Activations:
        return {SITE: self.features.draw(self.batch_tokens, step + 1)}

    def sample(self) -> Activations:
        return {SITE: self.features.draw(2 * self.batch_tokens, 0)}


def trained_on(features: Features, config: TrainConfig) -> Sae:
    """An SAE that has seen nothing but these features."""
    run = Run([Member(config, (SITE,))], DrawnStream(features, config.batch_tokens))
    for _ in run.run():
        pass
    return run.trainers[0].export()
