"""Passes over pre-activations and latents, by numba on a processor, where it is installed (the extra `fast`). They find
the very latents and places that selection.py and support.py find without them, so no result depends on whether it is.
"""

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

INSTALLED = importlib.util.find_spec("numba") is not None
INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
Found = TypeVar("Found")


def usable(a: Tensor) -> bool:
    return INSTALLED and a.device.type == "cpu" and a.dtype in INTEGERS


def ordered(a: Tensor) -> Tensor:
    """Integers of the size and in the order of the numbers a; -0 comes before 0."""
    bits = a.view(INTEGERS[a.dtype])
    return bits ^ ((bits >> 8 * bits.itemsize - 1) & torch.iinfo(bits.dtype).max)


def largest(a: Tensor, k: int) -> Tensor:
    """selection.largest, for a [B, M] in groups."""
    from jobs.ml import kernels

    latents = torch.empty(len(a), k, dtype=torch.int64)
    in_parts(len(a), lambda part: kernels.largest(*bits_and_mask(a[part]), k, latents[part].numpy()))
    return latents


def above(a: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and latents [n], ascending, where a [B, M] is greater than floor [M], of the same dtype."""
    from jobs.ml import kernels

    floors = ordered(floor).numpy()

    def find(part: slice) -> Tensor:
        bits, mask = bits_and_mask(a[part])
        # Room for all: of that, what is not written takes no memory.
        rows, latents = places = torch.empty(2, bits.size + kernels.WORD, dtype=torch.int64)
        n = kernels.above(bits, mask, floors, part.start, rows.numpy(), latents.numpy())
        return places[:, :n]

    rows, latents = torch.cat(in_parts(len(a), find), dim=1)
    return rows, latents


def sort(latents: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """support.sort"""
    from jobs.ml import kernels

    places, starts = torch.empty_like(latents), torch.zeros(width, dtype=torch.int64)
    kernels.sort(latents.numpy(), starts.numpy(), places.numpy())
    return places, starts


def bits_and_mask(a: Tensor) -> tuple[Any, int]:
    bits = a.view(INTEGERS[a.dtype])
    return bits.numpy(), torch.iinfo(bits.dtype).max


def in_parts(rows: int, work: Callable[[slice], Found]) -> list[Found]:
    """What comes of each part of the rows, one part for each of torch's threads."""
    threads = torch.get_num_threads()
    size = max(1, -(-rows // threads))
    first, *others = [slice(start, min(start + size, rows)) for start in range(0, max(1, rows), size)]
    coming = [pool(threads).submit(work, part) for part in others]
    return [work(first), *(one.result() for one in coming)]


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "compiled")
