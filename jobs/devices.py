"""Which GPUs a job computes on: of its own, as long as there are enough for all jobs."""

import contextlib
import fcntl
import itertools
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from jobs.gpus import Gpus

CPU = "CPU"  # among devices, the machine's own memory
DRIVER = Path("/proc/driver/nvidia/gpus")


def devices() -> list[str]:
    """Those that CUDA_VISIBLE_DEVICES names, else all that the driver has."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    return [str(number) for number, _ in enumerate(DRIVER.glob("*"))]


@dataclass(frozen=True)
class Memory:
    """Of one device, in bytes."""

    device: str
    total: int
    free: int


def memories() -> list[Memory]:
    """What this machine has now: its own memory, then that of every GPU whose driver answers."""
    import psutil

    own = psutil.virtual_memory()
    return [Memory(CPU, own.total, own.available), *gpu_memories()]


def gpu_memories() -> list[Memory]:
    """None without a driver, or with one that does not say."""
    names = devices()
    with contextlib.closing(Gpus(names)) as gpus:
        return [
            Memory(f"GPU {place}, {name}", memory.total, memory.free)
            for place, (name, memory) in zip(names, gpus.facts(), strict=False)
        ]


@contextlib.contextmanager
def devices_of_its_own(queue: str, n: int = 1) -> Iterator[dict[str, str]]:
    """The environment of a process that sees n GPUs, held as long as the block lasts; fewer where fewer are free. The
    kernel lets go of the locks however this process ends. Jobs beyond the number of GPUs share the first."""
    there_are = devices() if queue == "gpu" else []
    with contextlib.ExitStack() as held:
        free = list(itertools.islice((name for name in there_are if take(name, held)), n)) or there_are[:1]
        yield {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(free)} if free else {}


def take(name: str, held: contextlib.ExitStack) -> bool:
    folder = settings.MISTUDIO_DATA / "devices" / socket.gethostname()
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / f"{name}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    held.enter_context(file)
    return True
