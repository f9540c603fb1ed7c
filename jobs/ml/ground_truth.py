"""Activations made of features that are known, to see whether an SAE finds them (Sharkey et al. 2022).

1,024 unit features in 256 dimensions, of which about 12 are active at once: x is the sum of the active ones, each by a
strength of its own. Reported are the mean max cosine (MMCS: of each feature with the decoder row nearest to it) and the
mean over a matching of one row to each feature (MCC), which a row that stands for two features cannot serve twice.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.ml.assignment import best_assignment


@dataclass
class Features:
    n: int = 1024
    dimensions: int = 256
    active: float = 12.0  # at once, in the mean
    seed: int = 0
    directions: Tensor = field(init=False)  # [n, dimensions], unit rows
    rates: Tensor = field(init=False)  # [n]: how often each is active; the commonest ten times as often as the rarest

    def __post_init__(self) -> None:
        random = generator(self.seed, 0)
        self.directions = F.normalize(torch.randn(self.n, self.dimensions, generator=random), dim=1)
        rates = torch.logspace(0, -1, self.n)
        self.rates = rates * self.active / rates.sum()

    def draw(self, tokens: int, seed: int) -> Tensor:
        """x [tokens, dimensions], the same for the same seed"""
        random = generator(self.seed, 1, seed)
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


def generator(*key: int) -> torch.Generator:
    """Of which no training has the like, whatever its seed is: it would begin with the features themselves. Of a seed
    torch heeds 32 bits alone."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
