"""Passes of a training step on a GPU, each by one kernel, where Triton is installed (torch for CUDA brings it). They
compute what support.py and selection.py compute without them: the same latents, and sums but for rounding. The same
inputs give the same bits.
"""

import importlib.util
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from jobs.ml.compiled import INTEGERS

INSTALLED = importlib.util.find_spec("triton") is not None
TILE = {"ROWS": 16, "COLUMNS": 128}  # of a table, that are summed together
WIDEST = 2**14  # numbers that are compared together


def usable(tensor: Tensor) -> bool:
    return INSTALLED and tensor.is_cuda and works(tensor.device)


@cache
def works(device: torch.device) -> bool:
    """Triton compiles when it is first used, for which it needs a C compiler, and must know the GPU."""
    weights, numbers = torch.tensor([1.0, 2.0], device=device), torch.arange(2, device=device)
    try:
        if torch.equal(gather_sum(weights.diag(), numbers, numbers, weights), weights.square().diag()):
            return True
        why = "its sums are wrong"
    except Exception as error:  # whatever it is, there is another way
        why = f"{type(error).__name__}: {error}"
    warnings.warn(f"Triton cannot be used on {device}, so steps take longer: {why}", stacklevel=2)
    return False


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """On the device of the first argument."""
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, **options)


def gather_sum(table: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """support.gather_sum"""
    from jobs.ml import triton_kernels

    S, D = len(starts), table.shape[1]
    out = table.new_empty(S, D)
    inputs = table.contiguous(), rows, starts, weights.contiguous()
    launch(triton_kernels.gather_sum, (S, -(-D // TILE["COLUMNS"])), *inputs, out, len(rows), S, D, **TILE)
    return out


def gather_dot(vectors: Tensor, table: Tensor, latents: Tensor, starts: Tensor) -> Tensor:
    """[n]: the products of vectors [B, D] with rows of a table [M, D]: latents [n], from each of the starts [B] on."""
    from jobs.ml import triton_kernels

    B, D = vectors.shape
    out = table.new_empty(len(latents))
    inputs = vectors.contiguous(), table.contiguous(), latents, starts
    launch(triton_kernels.gather_dot, (B,), *inputs, out, len(latents), B, D, **TILE)
    return out


def selects(a: Tensor, k: int, group: int) -> bool:
    """Is `largest` for such an a [B, M]?"""
    return usable(a) and max(a.shape[1] // group, 2 * group * k) <= WIDEST


def largest(a: Tensor, k: int, group: int) -> Tensor:
    """selection.largest, for a [B, M] in groups."""
    from jobs.ml import triton_kernels

    B, n_groups, bits = len(a), a.shape[1] // group, a.contiguous().view(INTEGERS[a.dtype])
    sizes = {"GROUP": group, "BITS": 8 * bits.itemsize, "MASK": torch.iinfo(bits.dtype).max}
    groups = torch.empty(B, k, dtype=torch.int32, device=a.device)
    latents = torch.empty(B, k, dtype=torch.int64, device=a.device)
    several = {"WIDTH": power_of_2(n_groups), "num_warps": 8}
    launch(triton_kernels.largest_groups, (B,), bits, groups, k, n_groups, **several, **sizes)
    launch(triton_kernels.largest_in_groups, (B,), bits, groups, latents, k, n_groups, WIDTH=power_of_2(k), **sizes)
    return latents


def power_of_2(n: int) -> int:
    """The least that is not below n >= 1: no other sizes are held together."""
    return 1 << (n - 1).bit_length()
