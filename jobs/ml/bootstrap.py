"""95 % intervals of ratios of sums, by the bootstrap over documents (Efron 1979; percentiles, seeded).

Tokens of one document are alike, so an interval over tokens would be too narrow: whole documents are drawn.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

MOST = 4096  # units: from there on neighbours are taken together
FEWEST = 10  # units: of fewer an interval would say nothing
RESAMPLES = 1000
DRAWN = 2**22  # numbers held at once
ENDS = (2.5, 97.5)  # percent
Sums = Mapping[str, np.ndarray]


class Formula(NamedTuple):
    """A figure of the totals over all tokens, or over each of many resamples. The version changes with the meaning."""

    name: str
    version: int
    of: Callable[[Sums], np.ndarray]

    @property
    def told(self) -> str:
        return f"{self.name}/{self.version}"


class UnitSums:
    """Sums over the tokens of each unit; of `names`, and of a vector with so many dimensions."""

    def __init__(self, names: Sequence[str], dimensions: int, device: torch.device | str) -> None:
        self.names, self.dimensions = tuple(names), dimensions
        self.sums = torch.zeros(64, 1 + len(names) + dimensions, dtype=torch.float64, device=device)
        self.units = 0
        self.merged = 0  # how often neighbours were taken together

    def add(self, units: Tensor, values: Mapping[str, Tensor], vectors: Tensor | None = None) -> None:
        """units int64 [n], of each token; values [n] by name; vectors [n, dimensions]"""
        if not len(units):
            return
        self.units = max(self.units, int(units.max()) + 1)
        while (self.units - 1) >> self.merged >= MOST:
            self.merge()
        if (missing := ((self.units - 1) >> self.merged) + 1 - len(self.sums)) > 0:
            more = self.sums.new_zeros(max(missing, len(self.sums)), self.sums.shape[1])
            self.sums = torch.cat([self.sums, more])
        columns = [torch.ones_like(units), *(values[name] for name in self.names)]
        numbers = torch.stack([column.to(self.sums) for column in columns], dim=1)
        if vectors is not None:
            numbers = torch.cat([numbers, vectors.to(self.sums)], dim=1)
        self.sums.index_add_(0, units.to(self.sums.device) >> self.merged, numbers)

    def merge(self) -> None:
        """Each two neighbours become one."""
        even = torch.nn.functional.pad(self.sums, (0, 0, 0, len(self.sums) % 2))
        self.sums = even.view(-1, 2, even.shape[1]).sum(1)
        self.merged += 1

    @property
    def n(self) -> int:
        """Tokens."""
        return int(self.sums[:, 0].sum())

    def drawn_from(self) -> Tensor:
        """Those of units that have tokens [units, columns]"""
        return self.sums[self.sums[:, 0] > 0].cpu()

    def figures(self, formulas: Sequence[Formula], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
        """By name {value, low, high, n, formula}; None for what has no value, or no interval."""
        units = self.drawn_from().numpy()
        totals = self.named(units.sum(0, keepdims=True))
        drawn = [self.named(part) for part in draws(units, resamples, seed)] if len(units) >= FEWEST else []
        found = {}
        for formula in formulas:
            value = number(formula.of(totals)[0])
            values = np.concatenate([formula.of(part) for part in drawn]) if drawn and value is not None else ()
            sure = len(values) > 0 and np.isfinite(values).all()
            low, high = (float(end) for end in np.percentile(values, ENDS)) if sure else (None, None)
            found[formula.name] = figure(value, self.n, formula.told, low, high)
        return found

    def named(self, totals: np.ndarray) -> dict[str, np.ndarray]:
        """totals [R, columns]; of the vector the squared length of its mean is given, as `mean2`."""
        found = dict(zip(("n", *self.names), totals.T, strict=False))
        vector = totals[:, 1 + len(self.names) :]
        return {**found, "mean2": np.square(vector / np.maximum(1, totals[:, :1])).sum(1)}

    def about(self, unit: str) -> dict[str, Any]:
        """What was drawn."""
        return {"unit": unit, "n": len(self.drawn_from()), "in_each": 2**self.merged}


def draws(units: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Totals [R, columns] of as many units as there are, drawn with replacement."""
    random, n = np.random.default_rng(seed), len(units)
    size = max(1, DRAWN // n)
    for start in range(0, resamples, size):
        times = random.multinomial(n, np.full(n, 1 / n), size=min(size, resamples - start))
        yield times.astype(np.float64) @ units


def figure(
    value: float | None, n: int, formula: str, low: float | None = None, high: float | None = None
) -> dict[str, Any]:
    """formula: name/version"""
    return {"value": value, "low": low, "high": high, "n": n, "formula": formula}


def number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Not a number where the whole is nothing that can be divided by."""
    there = np.abs(whole) > 1e-12
    return np.where(there, part / np.where(there, whole, 1), np.nan)
