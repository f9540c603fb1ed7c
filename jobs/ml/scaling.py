"""How large the inputs are, and where they have their centre."""

import torch
from torch import Tensor

from jobs.ml.errors import WithHint


@torch.no_grad()
def geometric_median(x: Tensor, iterations: int = 100, tolerance: float = 1e-5) -> Tensor:
    """The point [D] with the least summed distance to the rows of x [N, D] (Weiszfeld's algorithm)."""
    median = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - median).norm(dim=1, keepdim=True).clamp_min(1e-8)
        moved = (x * weights).sum(0) / weights.sum()
        if (moved - median).norm() <= tolerance * median.norm():
            return moved
        median = moved
    return median


@torch.no_grad()
def input_scale(x: Tensor) -> float:
    """What makes the mean norm of the rows of x [N, D] equal sqrt(D). Raises ValueError where all are
    zero.
    """
    norm = x.norm(dim=1).mean().item()
    if norm == 0:
        raise WithHint("all activations are zero: there is nothing to learn at this site.")
    return x.shape[1] ** 0.5 / norm
