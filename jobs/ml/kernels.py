"""What compiled.py calls, compiled by numba: loops over integers that stand for numbers (see compiled.ordered)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from jobs.ml.selection import GROUP

WORD = 8  # latents among which there is most often none above a floor: bytes that are looked at together
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
def choose(keys: Array, n: int, k: int, places: Array) -> Any:
    """Into places, which has room for one more, where the k largest of the first n keys are; the least of those. Of
    equal ones the first are taken."""
    least = kth_largest(keys, n, k)
    equal = k
    for i in range(n):
        equal -= keys[i] > least
    chosen = np.uintp(0)  # unsigned, as all that is an index here: else each use asks whether it counts from the end
    for i in range(n):
        same = keys[i] == least
        places[chosen] = i
        chosen += np.uintp((keys[i] > least) | (same & (equal > 0)))
        equal -= same
    return least


@compiled
def largest(bits: Array, mask: int, k: int, out: Array) -> None:
    """The latents [B, k], ascending, of the k largest keys of each row of bits [B, M]: see selection.largest."""
    n_groups = bits.shape[1] // GROUP
    maxima = np.empty(n_groups, bits.dtype)
    groups = np.empty(k + 1, np.uintp)
    keys = np.empty(GROUP * k + 1, bits.dtype)
    latents = np.empty(GROUP * k + 1, np.uintp)
    places = np.empty(k + 1, np.uintp)
    for r in range(len(bits)):
        for j in range(n_groups):
            maxima[j] = ordered(bits[r, j], mask)
        for i in range(1, GROUP):
            layer = bits[r, i * n_groups : (i + 1) * n_groups]
            for j in range(n_groups):
                key = bits.dtype.type(ordered(layer[j], mask))
                maxima[j] = max(maxima[j], key)
        least = choose(maxima, n_groups, k, groups)
        n = np.uintp(0)
        for i in range(GROUP):
            layer = bits[r, i * n_groups : (i + 1) * n_groups]
            first = np.uintp(i * n_groups)
            for g in range(k):
                key = bits.dtype.type(ordered(layer[groups[g]], mask))
                keys[n], latents[n] = key, first + groups[g]
                n += np.uintp(key >= least)
        choose(keys, int(n), k, places)
        for i in range(k):
            out[r, i] = latents[places[i]]


@compiled
def above(bits: Array, mask: int, floors: Array, first_row: int, rows: Array, latents: Array) -> int:
    """Where the keys of bits [B, M] are greater than floors [M], and how many are. Rows and latents have room for all,
    and for WORD more."""
    n, width = np.uintp(0), bits.shape[1]
    found = np.zeros(-(-width // WORD) * WORD, np.uint8)
    words = found.view(np.uint64)
    for r in range(len(bits)):
        for j in range(width):
            found[j] = bits.dtype.type(ordered(bits[r, j], mask)) > floors[j]
        for word in range(len(words)):
            for j in range(WORD * word, WORD * (word + 1) if words[word] else 0):
                rows[n], latents[n] = first_row + r, j
                n += np.uintp(found[j])
    return int(n)


@compiled
def sort(latents: Array, starts: Array, places: Array) -> None:
    """The places [n] of latents [n] in their order, of equal ones as they come; and where those of each begin [M]."""
    for latent in latents:
        starts[latent] += 1
    n = 0
    for latent in range(len(starts)):
        starts[latent], n = n, n + starts[latent]
    coming = starts.copy()
    for place in range(len(latents)):
        places[coming[latents[place]]] = place
        coming[latents[place]] += 1
