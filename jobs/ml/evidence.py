"""What a scan left on disk, feature by feature. Needs numpy only: web pages read it.

offsets.npy             int64 [M + 1]: feature i owns positions[offsets[i] : offsets[i + 1]], and values alike
positions.npy           uint32 or uint64 [n]: sequence * T + place in the sequence, ascending for each feature
values.npy              float32 [n]: activations, > 0
n_fired, max, mean.npy  [M]: n_fired in tokens; the mean is over the tokens where the feature fires
histogram.npy           int32 [M, H]: activations in H equal intervals from 0 to the feature's maximum
top_sequences.npy       int32 [M, K]: those with the largest activations, -1 where there are no more
quantile_sequences.npy  int32 [M, Q, n]: those whose largest activation lies in the Q-th part of 0 .. maximum
top_logit_ids, top_logit_values, bottom_logit_ids, bottom_logit_values.npy  [M, 10]: where logits are defined
neighbour_ids, neighbour_cosines.npy  [M, 10]: by the decoder rows
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jobs.ml import store

PLAN = Path("chunks", "plan.json")  # of a scan that is not finished


def plan_of(folder: Path) -> dict[str, Any]:
    """What the scan in the folder reads and how, be it finished or not; empty where there is none."""
    manifest = store.read_manifest(folder)
    if manifest is not None:
        return manifest["plan"]
    return store.read_json_if_there(folder / PLAN)


@dataclass(frozen=True)
class Example:
    """Where a feature fires in one sequence of the split."""

    sequence: int
    places: np.ndarray  # int64 [n], in the sequence
    values: np.ndarray  # float32 [n]

    @property
    def peak(self) -> float:
        return float(self.values.max())


class Evidence:
    def __init__(self, folder: Path | str) -> None:
        """Raises ValueError where the scan is not finished."""
        self.folder = Path(folder)
        manifest = store.read_manifest(self.folder)
        if manifest is None:
            raise ValueError(f"{folder} has no manifest.json: the scan is not finished.")
        self.manifest: dict[str, Any] = manifest
        self.width: int = manifest["width"]
        self.n_tokens: int = manifest["tokens"]  # counted ones
        self.n_sequences: int = manifest["sequences"]
        self.context_length: int = manifest["context_length"]
        self.split: str = manifest["split"]

    def array(self, name: str) -> np.ndarray | None:
        """One of the arrays above, mapped from disk; None where the scan has none (logits of an encoder)."""
        path = self.folder / f"{name}.npy"
        return np.load(path, mmap_mode="r") if path.is_file() else None

    def known(self, name: str) -> np.ndarray:
        found = self.array(name)
        assert found is not None, name
        return found

    @cached_property
    def offsets(self) -> np.ndarray:
        return self.known("offsets")

    @cached_property
    def positions(self) -> np.ndarray:
        return self.known("positions")

    @cached_property
    def values(self) -> np.ndarray:
        return self.known("values")

    @cached_property
    def n_fired(self) -> np.ndarray:
        return self.known("n_fired")

    @cached_property
    def max(self) -> np.ndarray:
        return self.known("max")

    @cached_property
    def mean(self) -> np.ndarray:
        return self.known("mean")

    @cached_property
    def density(self) -> np.ndarray:
        """float64 [M]: tokens fired / tokens"""
        return self.n_fired / max(1, self.n_tokens)

    def activations(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Every position [n] of a feature and its value there [n]: one range read. Raises IndexError."""
        if not 0 <= index < self.width:
            raise IndexError(f"there is no feature {index}: they go from 0 to {self.width - 1}.")
        begin, end = self.offsets[index : index + 2]
        return self.positions[begin:end], self.values[begin:end]

    def histogram(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens per interval [H], and the edges of the intervals [H + 1]."""
        counts = np.asarray(self.known("histogram")[index])
        return counts, np.linspace(0.0, float(self.max[index]), len(counts) + 1)

    def examples(self, index: int, n: int = 20) -> list[Example]:
        """The sequences with the largest activations, the largest first."""
        return [self.example(index, sequence) for sequence in self.known("top_sequences")[index, :n] if sequence >= 0]

    def quantile_examples(self, index: int) -> list[list[Example]]:
        """Sequences at random from each part of 0 .. maximum, the weakest part first."""
        return [
            [self.example(index, sequence) for sequence in part if sequence >= 0]
            for part in self.known("quantile_sequences")[index]
        ]

    def example(self, index: int, sequence: int) -> Example:
        positions, values = self.activations(index)
        first = int(sequence) * self.context_length
        begin, end = np.searchsorted(positions, np.asarray([first, first + self.context_length], positions.dtype))
        return Example(int(sequence), positions[begin:end].astype(np.int64) - first, np.asarray(values[begin:end]))

    def logits(self, index: int) -> dict[str, list[tuple[int, float]]] | None:
        """{"top": [(token id, value)], "bottom": ...}, strongest first; None where logits are not defined."""
        if self.array("top_logit_ids") is None:
            return None
        return {
            end: pairs(self.known(f"{end}_logit_ids")[index], self.known(f"{end}_logit_values")[index])
            for end in ("top", "bottom")
        }

    def neighbours(self, index: int) -> list[tuple[int, float]]:
        """(feature, cosine of the decoder rows), the nearest first"""
        return pairs(self.known("neighbour_ids")[index], self.known("neighbour_cosines")[index])


def pairs(ids: np.ndarray, values: np.ndarray) -> list[tuple[int, float]]:
    return [(int(index), float(value)) for index, value in zip(ids, values, strict=True)]
