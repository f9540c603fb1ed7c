"""What compiled.py calls, compiled by numba: loops over integers that stand for numbers (see compiled.ordered)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from jobs.ml.selection import GROUP

BLOCK = 32  # latents among which there is most often none above a floor
Array = NDArray[Any]


def compiled(function: Callable[..., Any]) -> Any:
    """Without the interpreter's lock, and kept on disk for the next process where there is a place to keep it."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


@compiled
def ordered(bits: Any, mask: int) -> Any:
    return bits ^ ((bits >> 63) & mask)


@compiled
def kth_largest(keys: Array, n: int, k: int) -> Any:
    """Of the first n keys: by halving the range in which it lies, since counting is what a processor does fastest."""
    low = high = np.int64(keys[0])
    for i in range(n):
        low, high = min(low, keys[i]), max(high, keys[i])
    while low < high:
        middle = (low + high + 1) >> 1
        bound = keys.dtype.type(middle)
        reached = 0
        for i in range(n):
            reached += keys[i] >= bound
        if reached >= k:
            low = middle
        else:
            high = middle - 1
    return keys.dtype.type(low)


@compiled
def largest(bits: Array, mask: int, k: int, out: Array) -> None:
    """The latents [B, k], ascending, of the k largest keys of each row of bits [B, M]: see selection.largest."""
    n_groups = bits.shape[1] // GROUP
    maxima = np.empty(n_groups, bits.dtype)
    groups = np.empty(n_groups, np.int64)
    keys = np.empty(GROUP * k, bits.dtype)
    latents = np.empty(GROUP * k, np.int64)
    for r in range(len(bits)):
        for j in range(n_groups):
            maxima[j] = ordered(bits[r, j], mask)
        for i in range(1, GROUP):
            layer = bits[r, i * n_groups : (i + 1) * n_groups]
            for j in range(n_groups):
                key = bits.dtype.type(ordered(layer[j], mask))
                maxima[j] = max(maxima[j], key)
        least = kth_largest(maxima, n_groups, k)
        equal = k
        for j in range(n_groups):
            equal -= maxima[j] > least
        n = 0
        for j in range(n_groups):
            groups[n] = j
            n += maxima[j] > least or (maxima[j] == least and equal > 0)
            equal -= maxima[j] == least
            if n == k:
                break
        n = 0
        for i in range(GROUP):
            for g in range(k):
                latent = i * n_groups + groups[g]
                key = bits.dtype.type(ordered(bits[r, latent], mask))
                keys[n], latents[n] = key, latent
                n += key >= least
        least = kth_largest(keys, n, k)
        equal = k
        for i in range(n):
            equal -= keys[i] > least
        m = 0
        for i in range(n):
            if keys[i] > least or (keys[i] == least and equal > 0):
                out[r, m] = latents[i]
                m += 1
                equal -= keys[i] == least


@compiled
def count_above(bits: Array, mask: int, floors: Array) -> int:
    n = 0
    for r in range(len(bits)):
        own = 0
        for j in range(bits.shape[1]):
            own += bits.dtype.type(ordered(bits[r, j], mask)) > floors[j]
        n += own
    return n


@compiled
def above(bits: Array, mask: int, floors: Array, first_row: int, rows: Array, latents: Array) -> None:
    """Where the keys of bits [B, M] are greater than floors [M]."""
    n, width = 0, bits.shape[1]
    for r in range(len(bits)):
        for start in range(0, width, BLOCK):
            block, least = bits[r, start : start + BLOCK], floors[start : start + BLOCK]
            found = 0
            for j in range(len(block)):
                found += bits.dtype.type(ordered(block[j], mask)) > least[j]
            for j in range(len(block) if found else 0):
                rows[n], latents[n] = first_row + r, start + j
                n += bits.dtype.type(ordered(block[j], mask)) > least[j]
