"""Numbers and example sequences of every feature, from its codes on disk. All of it is vectorised over
features.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jobs.ml import store
from jobs.ml.columns import blocks

BLOCK = 4_000_000  # codes in memory at once, or one feature's where it has more


def write_statistics(
    folder: Path,
    context_length: int,
    *,
    bins: int = 50,
    top: int = 20,
    quantiles: int = 5,
    per_quantile: int = 5,
    seed: int = 0,
    on_progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Reads offsets, positions and values in the folder; writes the arrays that evidence.py lists beside
    them.
    """
    offsets = np.load(folder / "offsets.npy")
    positions = np.load(folder / "positions.npy", mmap_mode="r")
    values = np.load(folder / "values.npy", mmap_mode="r")
    M = len(offsets) - 1
    arrays = {
        "n_fired": np.diff(offsets),
        "max": np.zeros(M, np.float32),
        "mean": np.zeros(M, np.float32),
        "histogram": np.zeros((M, bins), np.int32),
        "top_sequences": np.full((M, top), -1, np.int32),
        "quantile_sequences": np.full((M, quantiles, per_quantile), -1, np.int32),
    }
    for begin, end in blocks(offsets, BLOCK):
        here = slice(int(offsets[begin]), int(offsets[end]))
        block = Block(offsets[begin : end + 1] - offsets[begin], positions[here], values[here], context_length)
        arrays["max"][begin:end] = block.max
        arrays["mean"][begin:end] = block.mean()
        arrays["histogram"][begin:end] = block.histogram(bins)
        block.top_sequences(arrays["top_sequences"][begin:end])
        block.quantile_sequences(arrays["quantile_sequences"][begin:end], seed)
        on_progress(end / M)
    for name, array in arrays.items():
        store.write_array(folder / f"{name}.npy", array)


class Block:
    """The codes of m neighbouring features."""

    def __init__(self, offsets: np.ndarray, positions: np.ndarray, values: np.ndarray, context_length: int) -> None:
        """offsets [m + 1] into positions [n] and values [n]"""
        self.m = len(offsets) - 1
        self.counts = np.diff(offsets)
        self.feature = np.repeat(np.arange(self.m), self.counts)  # [n]
        self.values = np.asarray(values)
        self.max = np.zeros(self.m, np.float32)
        alive = self.counts > 0
        if alive.any():
            self.max[alive] = np.maximum.reduceat(self.values, offsets[:-1][alive])
        self.find_peaks(np.asarray(positions).astype(np.int64) // context_length)

    def find_peaks(self, sequence: np.ndarray) -> None:
        """One entry per feature and sequence where it fires: its largest activation there."""
        new = np.ones(len(sequence), dtype=bool)
        new[1:] = (sequence[1:] != sequence[:-1]) | (self.feature[1:] != self.feature[:-1])
        starts = np.flatnonzero(new)
        self.peak = np.maximum.reduceat(self.values, starts) if len(starts) else np.empty(0, np.float32)
        self.peak_feature, self.peak_sequence = self.feature[starts], sequence[starts]

    def mean(self) -> np.ndarray:
        """float64 [m], over the tokens where the feature fires; 0 where it never does"""
        total = np.bincount(self.feature, weights=self.values, minlength=self.m)
        return total / np.maximum(1, self.counts)

    def histogram(self, bins: int) -> np.ndarray:
        """int64 [m, bins]"""
        place = interval(self.values, self.max[self.feature], bins)
        return np.bincount(self.feature * bins + place, minlength=self.m * bins).reshape(self.m, bins)

    def top_sequences(self, out: np.ndarray) -> None:
        """Fills out [m, K]; equal peaks in the order of the text."""
        order = np.lexsort((self.peak_sequence, -self.peak, self.peak_feature))
        feature = self.peak_feature[order]
        rank = ranks(feature)
        first = rank < out.shape[1]
        out[feature[first], rank[first]] = self.peak_sequence[order][first]

    def quantile_sequences(self, out: np.ndarray, seed: int) -> None:
        """Fills out [m, Q, n] with sequences chosen at random, but always the same ones for the same seed."""
        part = interval(self.peak, self.max[self.peak_feature], out.shape[1])
        group = self.peak_feature * out.shape[1] + part
        order = np.lexsort((scrambled(self.peak_sequence, seed), group))
        group = group[order]
        rank = ranks(group)
        first = rank < out.shape[2]
        out.reshape(-1, out.shape[2])[group[first], rank[first]] = self.peak_sequence[order][first]


def interval(values: np.ndarray, most: np.ndarray, n: int) -> np.ndarray:
    """Which of n equal intervals from 0 to `most` each value lies in; the largest value lies in the last."""
    share = values.astype(np.float64) / np.maximum(most, np.finfo(np.float32).tiny)
    return np.minimum((share * n).astype(np.int64), n - 1)


def ranks(group: np.ndarray) -> np.ndarray:
    """0, 1, 2 ... within each run of equal neighbours in a sorted array"""
    places = np.arange(len(group))
    new = np.ones(len(group), dtype=bool)
    new[1:] = group[1:] != group[:-1]
    return places - np.maximum.accumulate(np.where(new, places, 0))


def scrambled(numbers: np.ndarray, seed: int) -> np.ndarray:
    """uint64, as good as random, from each number and the seed (the finaliser of SplitMix64)"""
    z = numbers.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
