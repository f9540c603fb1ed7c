"""What is said of a site's activations: sums in float64, taken while they pass, that add up from shard to shard."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

LOW, HIGH, PER_DECADE = -4, 7, 100  # bins of norms: powers of ten, and how many to one; 2.3 % wide
OUTLIERS = 20
NEAR_ZERO = 0.01  # of the root mean square of the token's entries
QUANTILES = (1, 5, 25, 50, 75, 95, 99)
BARS = 48
ADDED = ("tokens", "sum", "square", "norm_sums", "histogram", "zeros", "near_zeros", "error")

Sums = dict[str, np.ndarray]


class SiteSums:
    """Of one site and shard."""

    def __init__(self, width: int, device: torch.device | str) -> None:
        self.width, self.tokens = width, 0
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.square, self.zeros, self.near_zeros = self.sum.clone(), self.sum[0].clone(), self.sum[0].clone()
        self.error = self.sum[0].clone()
        self.norms: list[np.ndarray] = []

    def add(self, x: Tensor, stored: Tensor) -> None:
        """x float32 [n, D] as the model gave it, and as it is read back."""
        norms = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
        self.tokens += len(x)
        self.sum += x.sum(0, dtype=torch.float64)
        self.square += x.square().sum(0, dtype=torch.float64)
        size = x.abs()
        self.zeros += (size == 0).sum()
        self.near_zeros += (size < NEAR_ZERO * self.width**-0.5 * norms[:, None].float()).sum()
        self.error += (x - stored).square().sum(dtype=torch.float64)
        self.norms.append(norms.cpu().numpy())

    def arrays(self, positions: np.ndarray) -> Sums:
        """positions [tokens]: where in the split each token that was added stands"""
        norms = np.concatenate([np.empty(0), *self.norms])
        largest = np.lexsort((positions, -norms))[:OUTLIERS]
        scalars = {name: getattr(self, name).cpu().numpy().reshape(1) for name in ("zeros", "near_zeros", "error")}
        return {
            "tokens": np.array([self.tokens], dtype=np.int64),
            "sum": self.sum.cpu().numpy(),
            "square": self.square.cpu().numpy(),
            "norm_sums": np.array([norms.sum(), np.square(norms).sum()]),
            "histogram": histogram(norms),
            **scalars,
            "ends": np.array([norms.min(initial=np.inf), norms.max(initial=0)]),
            "outlier_norms": norms[largest],
            "outlier_positions": positions[largest].astype(np.uint64),
        }


def histogram(norms: np.ndarray) -> np.ndarray:
    """int64 [bins + 2]: the first and the last are for what lies outside"""
    with np.errstate(divide="ignore"):
        bins = np.floor((np.log10(norms) - LOW) * PER_DECADE) + 1
    n_bins = (HIGH - LOW) * PER_DECADE + 2
    return np.bincount(np.clip(bins, 0, n_bins - 1).astype(np.int64), minlength=n_bins)


def together(a: Sums | None, b: Sums) -> Sums:
    if a is None:
        return b
    norms = np.concatenate([a["outlier_norms"], b["outlier_norms"]])
    positions = np.concatenate([a["outlier_positions"], b["outlier_positions"]])
    largest = np.lexsort((positions, -norms))[:OUTLIERS]
    low, high = np.minimum(a["ends"], b["ends"]), np.maximum(a["ends"], b["ends"])
    return {
        **{name: a[name] + b[name] for name in ADDED},
        "ends": np.array([low[0], high[1]]),
        "outlier_norms": norms[largest],
        "outlier_positions": positions[largest],
    }


def describe(sums: Sums) -> dict[str, Any]:
    """Plain numbers. Quantiles are read from the histogram, to within a bin."""
    n, width = int(sums["tokens"][0]), len(sums["sum"])
    mean = sums["sum"] / n
    variance = np.maximum(0, sums["square"] / n - np.square(mean))
    spread = np.sqrt(variance)
    norm_mean, norm_square = (sums["norm_sums"] / n).tolist()
    total = float(sums["norm_sums"][1])
    quantiles = {f"p{q}": quantile(sums, q / 100) for q in QUANTILES}
    return {
        "tokens": n,
        "width": width,
        "norm": {
            "mean": norm_mean,
            "std": max(0.0, norm_square - norm_mean**2) ** 0.5,
            "min": float(sums["ends"][0]),
            "max": float(sums["ends"][1]),
            **quantiles,
        },
        "histogram": bars(sums["histogram"]),
        "mean_norm": float(np.linalg.norm(mean)),
        "variance": float(variance.sum()),
        "std": {"min": float(spread.min()), "median": float(np.median(spread)), "max": float(spread.max())},
        "dimensions": [
            {"index": int(i), "mean": float(mean[i]), "std": float(spread[i])} for i in np.argsort(-abs(mean))[:8]
        ],
        "zeros": float(sums["zeros"][0]) / (n * width),
        "near_zeros": float(sums["near_zeros"][0]) / (n * width),
        "sinks": int(sums["histogram"][first_bin_above(10 * quantiles["p50"]) :].sum()),
        "error": float(sums["error"][0]) / total if total else 0.0,
        "outliers": [
            {"norm": float(norm), "position": int(position)}
            for norm, position in zip(sums["outlier_norms"], sums["outlier_positions"], strict=True)
        ],
    }


def quantile(sums: Sums, share: float) -> float:
    """The norm below which this share of the tokens lies."""
    counts, (least, most) = sums["histogram"], sums["ends"].tolist()
    below = counts.cumsum()
    at = int(np.searchsorted(below, share * below[-1]))
    part = (share * below[-1] - (below[at] - counts[at])) / max(1, counts[at])
    return float(min(most, max(least, 10 ** (LOW + (at - 1 + part) / PER_DECADE))))


def first_bin_above(norm: float) -> int:
    return int(np.argmax(histogram(np.array([norm])))) + 1


def bars(counts: np.ndarray) -> dict[str, list[float]]:
    """The filled part of the histogram in fewer bins: counts, and edges as powers of ten."""
    filled = np.flatnonzero(counts[1:-1])
    if not len(filled):
        return {"counts": [], "edges": []}
    first, last = int(filled[0]), int(filled[-1]) + 1
    size = max(1, -(-(last - first) // BARS))
    starts = np.arange(first, last, size)
    edges = LOW + np.append(starts, starts[-1] + size) / PER_DECADE
    return {"counts": np.add.reduceat(counts[1 : last + 1], starts).tolist(), "edges": edges.tolist()}
