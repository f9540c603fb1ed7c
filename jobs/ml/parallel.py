"""Several processes that train the same SAEs, each on its own rows of every batch: torch.distributed, in a few words.

All hold the same weights. What depends on the whole batch (sums of gradients, what is active in it, who is dead) is
agreed on in every step, so that the result is that of one process, but for the order in which sums are rounded. Every
word here is said by all processes, in the same order, or the others wait for it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from jobs.ml.errors import WithHint

PATIENCE = timedelta(minutes=30)  # one that writes a checkpoint or looks at predictions keeps the others waiting


class ProcessLost(WithHint):
    pass


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. ALONE, each word gives back what it was given."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Of all, the one that writes and reports."""
        return self.rank == 0

    def own(self, n: int) -> slice:
        """Which of n rows are those of this process; n is a multiple of the size."""
        share = n // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def sum(self, *tensors: Tensor) -> None:
        """Each becomes its sum over the processes, all by one message. They are of one dtype, on one device."""
        if self.size == 1:
            return
        flat = tensors[0] if len(tensors) == 1 else torch.cat([tensor.flatten() for tensor in tensors])
        together(dist.all_reduce, flat)
        if len(tensors) > 1:
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def mean(self, tensor: Tensor) -> Tensor:
        """Over the processes."""
        total = tensor.clone()
        self.sum(total)
        return total / self.size

    def least(self, value: float) -> float:
        if self.size == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64)
        together(dist.all_reduce, told, op=dist.ReduceOp.MIN)
        return float(told)

    def gather(self, values: Tensor) -> tuple[Tensor, slice]:
        """The values [n] of all processes, n may differ, in their order; and where those of this one are."""
        if self.size == 1:
            return values, slice(0, len(values))
        counts = [torch.tensor(0) for _ in range(self.size)]
        together(dist.all_gather, counts, torch.tensor(len(values)))
        numbers = [int(count) for count in counts]
        padded = values.new_zeros(max(numbers))
        padded[: len(values)] = values
        rooms = [torch.empty_like(padded) for _ in range(self.size)]
        together(dist.all_gather, rooms, padded)
        start = sum(numbers[: self.rank])
        whole = torch.cat([room[:n] for room, n in zip(rooms, numbers, strict=True)])
        return whole, slice(start, start + len(values))

    def told(self, number: int) -> int:
        """What the first says."""
        if self.size == 1:
            return number
        said = torch.tensor(number)
        together(dist.broadcast, said, src=0)
        return int(said)

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The block is run by the first, and then by the others, which find what it left in files."""
        if not self.first:
            self.told(0)
        yield
        if self.first:
            self.told(0)


ALONE = Ranks()


def join() -> Ranks:
    """In a process that torchrun started: which one it is stands in its environment. Raises WithHint."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    rank, size, here, beside = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    return meet(Ranks(rank, size), here, beside)


def meet(ranks: Ranks, here: int, beside: int, store: dist.Store | None = None) -> Ranks:
    """From now on they are connected, and `cuda` is the device of this one: the number `here` of `beside` processes
    of this machine. store: where they meet, else the environment says it. Raises WithHint."""
    backend = "gloo"
    if torch.cuda.is_available():
        if torch.cuda.device_count() < beside:
            raise WithHint(
                f"{beside} processes need as many GPUs: there are {torch.cuda.device_count()} for them.",
                "Start with fewer processes, or when other jobs have ended.",
            )
        torch.cuda.set_device(here)
        backend = "cpu:gloo,cuda:nccl"
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // beside))
    together(dist.init_process_group, backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=PATIENCE)
    return ranks


def device() -> str:
    """Of this process, once it has joined."""
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def together(word: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Raises ProcessLost."""
    try:
        word(*args, **options)
    except RuntimeError as error:
        raise ProcessLost(
            f"Another process of this run ended or does not answer: {str(error).splitlines()[0]}",
            "Start again: it goes on from the last checkpoint.",
        ) from error
