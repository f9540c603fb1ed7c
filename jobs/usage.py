"""What the processes of a job use, from the first to the last of its process group: CPU time, memory, bytes of disk
traffic, GPU memory and GPU time. Linux.

A process that ends gives its counts to the parent that waits for it, so those of a group add up to all that it has
used. What cannot be read is absent, never 0."""

import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from jobs import processes
from jobs.gpus import GpuReading, Gpus

EVERY = 2.0  # seconds between two looks
TRIES = 3
# Reading which pages processes share takes milliseconds per GiB: this share of a core, at most.
READING_SHARE = 0.01
MOST_PROCESSES = 20  # that are kept with the job
NAMES = ("cpu", "memory", "read", "written", "gpu", "gpu_memory")

Kept = dict[str, Any]  # of a job's row


@dataclass
class Figure:
    """Something that has a level at each moment: what it adds up to, and over how many seconds it was measured."""

    total: float = 0.0  # level times seconds
    seconds: float = 0.0
    peak: float = 0.0
    now: float | None = None  # None when nothing runs

    def add(self, amount: float, seconds: float, level: float | None = None) -> None:
        """`level`: where it is known, and not the mean over these seconds."""
        if seconds <= 0:
            return
        self.now = amount / seconds if level is None else level
        self.total += amount
        self.seconds += seconds
        if seconds > EVERY / 2 or not self.peak:  # what is counted in ticks is no peak over a moment
            self.peak = max(self.peak, self.now)

    @property
    def mean(self) -> float:
        return self.total / self.seconds


def figures_of(kept: Kept) -> dict[str, Figure]:
    """Those that were measured."""
    return {name: Figure(**kept[name]) for name in NAMES if name in kept}


def kept_of(figures: dict[str, Figure], shown: Iterable[Kept] = ()) -> Kept:
    found: Kept = {name: rounded(asdict(figure)) for name, figure in figures.items() if figure.seconds}
    return {**found, "processes": list(shown)} if shown else found


def at_rest(kept: Kept) -> Kept:
    """Without what is only true while it runs."""
    return kept_of({name: replace(figure, now=None) for name, figure in figures_of(kept).items()})


def rounded(values: dict[str, float | None]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items() if value is not None}


# ---- the processes of a group


@dataclass(frozen=True)
class Counts:
    """Of one process since it began. With those of its children that ended and that it waited for, but `own`."""

    cpu: float  # seconds
    own: float  # seconds
    read: int | None  # bytes that came from disks
    written: int | None  # bytes that were given to disks
    ended: bool  # nobody has waited for it yet


def members(group: int) -> list[int]:
    return [int(name) for name in os.listdir(processes.PROC) if name.isdecimal() and group_of(int(name)) == group]  # noqa: PTH208


def group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:  # it ended meanwhile
        return 0


def read_group(group: int) -> dict[int, Counts] | None:
    """None where one of them was waited for in this moment: what it used would be missing, or there twice."""
    for _ in range(TRIES):
        pids = members(group)
        found = {pid: counts for pid in pids if (counts := counts_of(pid))}
        if len(found) == len(pids) and set(pids) <= set(members(group)):
            return found
    return None


def counts_of(pid: int) -> Counts | None:
    stat = processes.stat_of(pid)
    if not stat:
        return None
    user, system, *of_children = (int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in stat[11:15])
    read, written = numbers(pid, "io", ("read_bytes", "write_bytes")) or (None, None)
    own = user + system
    return Counts(own + sum(of_children), own, read, written, processes.has_ended(stat))


def numbers(pid: int, file: str, names: tuple[str, ...]) -> list[int] | None:
    """Those of a file of /proc with lines like "RssAnon:  123 kB"; None where it, or one of them, cannot be read."""
    try:
        lines = (processes.PROC / str(pid) / file).read_text().splitlines()
    except OSError:
        return None
    found = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if name in names}
    return [found[name] for name in names] if len(found) == len(names) else None


def memory_of(pids: list[int]) -> dict[int, int] | None:
    """Bytes of each that nobody else could have: not the files that it maps. What several share is divided among them;
    of a lone process the kernel keeps count, and need not walk through its pages."""
    alone = len(pids) == 1
    file, names = ("status", ("RssAnon", "RssShmem")) if alone else ("smaps_rollup", ("Pss_Anon", "Pss_Shmem"))
    found = {pid: 1024 * sum(kib) for pid in pids if (kib := numbers(pid, file, names))}
    return found if found and len(found) == len(pids) else None


# ---- over time


class Meter:
    """Of one attempt. The figures of those before it count on."""

    def __init__(self, kept: Kept, gpus: Gpus | None = None) -> None:
        self.figures = {**{name: Figure() for name in NAMES}, **figures_of(at_rest(kept))}
        self.gpus = gpus or Gpus([])
        self.looked = time.monotonic()
        self.due = self.memory_due = 0.0
        self.counted = dict.fromkeys(("cpu", "read", "written"), (self.looked, 0.0))  # when, and how much until then
        self.own: dict[int, float] = {}
        self.memory: dict[int, int] | None = None
        self.processes: list[Kept] = []

    def look(self, group: int, last: bool = False) -> None:
        now = time.monotonic()
        if (now < self.due and not last) or not (found := read_group(group)):
            return
        elapsed, self.looked, self.due = now - self.looked, now, now + EVERY
        for name in self.counted:
            self.count(name, [getattr(counts, name) for counts in found.values()], now)
        gpu = self.gpus.read(found, elapsed)
        if gpu.seconds is not None:
            self.figures["gpu"].add(gpu.seconds, elapsed, gpu.share)
        if living := [pid for pid, counts in found.items() if not counts.ended]:
            self.weigh(living, gpu, elapsed)
        self.processes = [self.shown(pid, found[pid], gpu, elapsed) for pid in living]
        self.own = {pid: found[pid].own for pid in living}

    def count(self, name: str, values: list[Any], now: float) -> None:
        """A sum that fell lost a process for which nobody waited: what is used from here on is added."""
        if None in values:
            return
        at, before = self.counted[name]
        self.counted[name] = now, sum(values)
        self.figures[name].add(max(0.0, sum(values) - before), now - at)

    def weigh(self, living: list[int], gpu: GpuReading, elapsed: float) -> None:
        if self.looked >= self.memory_due or len(living) == 1:
            began = time.thread_time()
            self.memory = memory_of(living)
            self.memory_due = self.looked + (time.thread_time() - began) / READING_SHARE
        for name, memory in (("memory", self.memory), ("gpu_memory", gpu.memory)):
            if memory is not None:
                self.figures[name].add(sum(memory.values()) * elapsed, elapsed)

    def shown(self, pid: int, counts: Counts, gpu: GpuReading, elapsed: float) -> Kept:
        values = {
            "cpu": max(0.0, counts.own - self.own.get(pid, 0.0)) / elapsed if elapsed > 0 else None,
            "memory": (self.memory or {}).get(pid),
            "gpu_memory": (gpu.memory or {}).get(pid),
        }
        return {"pid": pid, **rounded(values)}

    def kept(self) -> Kept:
        """For the job's row, while it runs. Of many processes those that hold most memory."""
        most = sorted(self.processes, key=lambda one: (-one.get("gpu_memory", 0), -one.get("memory", 0)))
        return kept_of(self.figures, most[:MOST_PROCESSES])
