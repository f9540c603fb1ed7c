"""The same numbers from the same seed on the same machine."""

import torch


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
    return "cuda"
