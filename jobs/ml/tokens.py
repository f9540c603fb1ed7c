"""The sequences of token ids that a tokenization left on disk (see packing.py). Needs numpy only."""

from pathlib import Path
from typing import Any

import numpy as np

from jobs.ml import store

SPLITS = ("train", "held_out")
OPEN = 64  # shards: each holds two file descriptors


class TokenShards:
    """The sequences of one split, read by range from disk."""

    def __init__(self, folder: Path | str, split: str = "train") -> None:
        """Raises ValueError where the folder is not finished or has no such split."""
        self.folder, self.split = Path(folder), split
        manifest = store.read_manifest(self.folder)
        if manifest is None:
            raise ValueError(f"{folder} has no manifest.json: the tokenization is not finished.")
        if split not in SPLITS:
            raise ValueError(f"{split!r} is no split: there are {' and '.join(SPLITS)}.")
        counts = manifest["statistics"][split]
        self.context_length: int = manifest["plan"]["context_length"]
        self.add_bos: bool = manifest["plan"]["add_bos"]
        self.n_sequences: int = counts["sequences"]
        self.n_tokens: int = counts["tokens"]
        self.n_special: int = counts["special_tokens"]
        self.shard_rows: int = manifest["shard_rows"]
        self._shards: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def rows(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 [B, T] and special bool [B, T] of the sequences with these numbers, in this order."""
        wanted = np.asarray(indices, dtype=np.int64)
        ids = np.empty((len(wanted), self.context_length), dtype=np.int32)
        special = np.empty((len(wanted), self.context_length), dtype=bool)
        for shard in np.unique(wanted // self.shard_rows):
            here = wanted // self.shard_rows == shard
            rows = wanted[here] % self.shard_rows
            all_ids, bits = self.shard(int(shard))
            ids[here] = all_ids[rows]
            special[here] = unpack(bits[rows], self.context_length)
        return ids, special

    def kept_per_sequence(self) -> np.ndarray:
        """int64 [n_sequences]: tokens that are not special."""
        counts = [np.empty(0, dtype=np.int64)]
        for shard in range(-(-self.n_sequences // self.shard_rows)):
            bits = self.load(shard, "special")
            counts.append(self.context_length - unpack(bits, self.context_length).sum(axis=1))
        return np.concatenate(counts)

    def shard(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """ids [rows, T] and packed special bits [rows, ceil(T / 8)], mapped from disk."""
        if number not in self._shards:
            if len(self._shards) >= OPEN:
                del self._shards[next(iter(self._shards))]
            self._shards[number] = self.load(number, "ids"), self.load(number, "special")
        return self._shards[number]

    def load(self, number: int, part: str) -> np.ndarray:
        return np.load(self.folder / f"{self.split}-{number:05d}.{part}.npy", mmap_mode="r")


def unpack(bits: np.ndarray, length: int) -> np.ndarray:
    """bool [rows, length] from packed bits [rows, ceil(length / 8)]"""
    return np.unpackbits(bits, axis=1, count=length).astype(bool)
