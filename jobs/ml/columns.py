"""From codes in the order of the text to codes in the order of the features, on disk, in bounded memory.

A pass writes one file per chunk of sequences; `merge` lays them out by feature with one counting sort.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jobs.ml import store


def write_chunk(path: Path, width: int, positions: np.ndarray, latents: np.ndarray, values: np.ndarray) -> None:
    """One chunk's codes [n], positions ascending, sorted by latent here."""
    order = np.argsort(latents, kind="stable")
    store.write_tensors(
        path,
        {
            "counts": np.bincount(latents, minlength=width).astype(np.int64),  # [M]
            "positions": positions[order],
            "values": values[order].astype(np.float32),
        },
    )


def merge(
    chunks: Sequence[Path], folder: Path, width: int, on_progress: Callable[[float], None] = lambda share: None
) -> None:
    """Writes offsets.npy, positions.npy and values.npy from the chunks, given in the order of the text."""
    total = np.zeros(width, dtype=np.int64)
    for chunk in chunks:
        total += store.read_tensor(chunk, "counts")
    offsets = np.concatenate([[0], total.cumsum()]).astype(np.int64)
    store.write_array(folder / "offsets.npy", offsets)
    dtype = store.read_tensor(chunks[0], "positions").dtype
    n = int(offsets[-1])
    with store.replacing(folder / "positions.npy") as p, store.replacing(folder / "values.npy") as v:
        positions, values = (create(path, kind, n) for path, kind in ((p, dtype), (v, np.dtype(np.float32))))
        free = offsets[:-1].copy()  # where each feature's next code goes
        for done, chunk in enumerate(chunks, 1):
            codes = store.read_tensors(chunk)
            counts = codes["counts"]
            first = counts.cumsum() - counts
            places = np.repeat(free - first, counts) + np.arange(counts.sum())
            positions[places], values[places] = codes["positions"], codes["values"]
            free += counts
            on_progress(done / len(chunks))
        for array in (positions, values):
            if isinstance(array, np.memmap):
                array.flush()


def create(path: Path, dtype: np.dtype, n: int) -> np.ndarray:
    """An array [n] in a new .npy file, mapped; an empty one cannot be mapped."""
    if n == 0:
        with path.open("wb") as file:
            np.save(file, np.empty(0, dtype))
        return np.empty(0, dtype)
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(n,))


def blocks(offsets: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of features that own about `most` codes together, at least one feature each."""
    begin, width = 0, len(offsets) - 1
    while begin < width:
        end = int(np.searchsorted(offsets, offsets[begin] + most, side="right")) - 1
        end = min(width, max(begin + 1, end))
        yield begin, end
        begin = end
