"""The same numbers from the same seed on the same machine."""

from pathlib import Path

import torch
from torch.utils import deterministic

from jobs.ml.config import AUTO


def set_up(seed: int, threads: int | None = None) -> str:
    """Seeds torch and returns the device to compute on: the first GPU where there is one.

    Sums that are split over threads differently round differently, so the thread count belongs to a run like its
    seed. On a GPU some sums have no fixed order; torch warns where it meets them.
    """
    torch.manual_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        return "cpu"
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Else it writes to all new memory beforehand.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return "cuda"


def selection_of(wanted: str, device: str) -> str:
    """The precision in which the active latents are chosen: bfloat16 where the device multiplies it faster."""
    if wanted != AUTO:
        return wanted
    fast = torch.cuda.is_bf16_supported() if device == "cuda" else "avx512_bf16" in instructions()
    return "bfloat16" if fast else "float32"


def instructions() -> set[str]:
    """What the processor can do, in the words of Linux; empty where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())
