"""Logistic regression: the weight w and bias b that minimise sum log(1 + exp(-y (w x + b))) + |w|^2 / 2, on inputs
brought to mean 0 and deviation 1 (as scikit-learn with its StandardScaler and C = 1)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 200


class Probe(NamedTuple):
    weight: Tensor  # float64 [D], in the units of the inputs
    bias: Tensor  # scalar

    def says(self, x: Tensor) -> Tensor:
        """bool [N] of x [N, D]"""
        return x.double() @ self.weight + self.bias > 0


def fit(x: Tensor, y: Tensor) -> Probe:
    """x [N, D], y bool [N]. Convex, solved to the end: there is nothing random in it."""
    x, truth = x.double(), y.double()
    mean, deviation = x.mean(0), x.std(0, correction=0)
    scale = torch.where(deviation > 0, 1 / deviation.clamp_min(1e-30), 0)
    z = (x - mean) * scale
    w = torch.zeros(x.shape[1] + 1, dtype=torch.float64, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS([w], max_iter=STEPS, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def loss() -> Tensor:
        solver.zero_grad()
        total = F.binary_cross_entropy_with_logits(z @ w[:-1] + w[-1], truth, reduction="sum")
        total = (total + w[:-1].square().sum() / 2) / len(x)
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(loss)
    found = w.detach()
    weight = found[:-1] * scale
    return Probe(weight, found[-1] - weight @ mean)
