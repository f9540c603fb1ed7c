"""The sequences of token ids that a tokenization left on disk (see packing.py). Needs numpy only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.ml import store

SPLITS = ("train", "held_out")
OPEN = 128  # files mapped at once: each holds a descriptor


@dataclass(frozen=True)
class Sequences:
    ids: np.ndarray  # int32 [B, T]
    skipped: np.ndarray  # bool [B, T]: in no figure
    attention: np.ndarray | None  # bool [B, T]: tokens, not padding; None where there is no padding at all


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
        self.bos: str = manifest["plan"].get("bos", "present")  # as it was chosen: see TokenConfig
        self.layout: str = manifest["plan"].get("layout", "packed")
        self.stride: int | None = manifest["plan"].get("stride")
        # How many tokens stand before and after the content of a row, and the ids between documents, where it was noted
        self.frame: dict[str, Any] | None = manifest.get("frame")
        self.n_sequences: int = counts["sequences"]
        self.n_tokens: int = counts["tokens"]  # without padding
        self.shard_rows: int = manifest["shard_rows"]
        self.masks: bool = manifest.get("masks", False)  # are there masked tokens, or padding?
        self._shards: dict[tuple[int, str], np.ndarray] = {}

    def rows(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 [B, T] and special bool [B, T] of the sequences with these numbers, in this order.

        Special are special tokens, padding and whatever else is not to be counted."""
        wanted = np.asarray(indices, dtype=np.int64)
        return self.gather("ids", wanted).astype(np.int32), self.bits("special", wanted)

    def lengths(self, indices: Any) -> np.ndarray:
        """int64 [B]: tokens before the padding."""
        wanted = np.asarray(indices, dtype=np.int64)
        if not self.masks:
            return np.full(len(wanted), self.context_length, dtype=np.int64)
        return self.gather("lengths", wanted).astype(np.int64)

    def read(self, indices: Any, skip_special: bool = True) -> Sequences:
        """What a pass over these sequences needs. Padding and masked tokens are skipped even where special ones
        are not."""
        wanted = np.asarray(indices, dtype=np.int64)
        ids, special = self.rows(wanted)
        skipped = special if skip_special else self.masked(wanted)
        lengths = self.lengths(wanted)
        padded = bool((lengths < self.context_length).any())
        attention = np.arange(self.context_length) < lengths[:, None] if padded else None
        return Sequences(ids, skipped, attention)

    def masked(self, indices: np.ndarray) -> np.ndarray:
        """bool [B, T]: padding, what a window repeats of the one before, and what other roles say."""
        if not self.masks:
            return np.zeros((len(indices), self.context_length), dtype=bool)
        return self.bits("masked", indices)

    def kept_per_sequence(self, skip_special: bool = True) -> np.ndarray:
        """int64 [n_sequences]: tokens that are counted."""
        if not skip_special and not self.masks:
            return np.full(self.n_sequences, self.context_length, dtype=np.int64)
        part = "special" if skip_special else "masked"
        counts = [np.empty(0, dtype=np.int64)]
        for shard in range(-(-self.n_sequences // self.shard_rows)):
            bits = self.load(shard, part)
            counts.append(self.context_length - unpack(bits, self.context_length).sum(axis=1))
        return np.concatenate(counts)

    def bits(self, part: str, indices: np.ndarray) -> np.ndarray:
        return unpack(self.gather(part, indices), self.context_length)

    def gather(self, part: str, wanted: np.ndarray) -> np.ndarray:
        """The rows of this part with these numbers, in this order."""
        numbers, rows = np.divmod(wanted, self.shard_rows)
        shards = np.unique(numbers)
        if len(shards) == 1:
            return self.shard(int(shards[0]), part)[rows]
        first = self.shard(0, part)
        found = np.empty((len(wanted), *first.shape[1:]), dtype=first.dtype)
        for number in shards:
            here = numbers == number
            found[here] = self.shard(int(number), part)[rows[here]]
        return found

    def shard(self, number: int, part: str) -> np.ndarray:
        """Mapped from disk: ids [rows, T], packed bits [rows, ceil(T / 8)] or lengths [rows]."""
        if (number, part) not in self._shards:
            if len(self._shards) >= OPEN:
                del self._shards[next(iter(self._shards))]
            self._shards[number, part] = self.load(number, part)
        return self._shards[number, part]

    def load(self, number: int, part: str) -> np.ndarray:
        return np.load(self.folder / f"{self.split}-{number:05d}.{part}.npy", mmap_mode="r")


def unpack(bits: np.ndarray, length: int) -> np.ndarray:
    """bool [rows, length] from packed bits [rows, ceil(length / 8)]"""
    return np.unpackbits(bits, axis=1, count=length).astype(bool)
