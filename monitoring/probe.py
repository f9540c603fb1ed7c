"""Reads this host: processor, memory, disk and network by psutil, GPUs by NVML. Linux."""

import logging
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pynvml

from monitoring.gpus import Gpus
from monitoring.reading import Reading

DEVICES = Path("/sys/class")
TROUBLE = (OSError, RuntimeError, ValueError, psutil.Error)  # of a /proc that is not as psutil expects it

log = logging.getLogger(__name__)


class Growth:
    """Of counters that only grow."""

    def __init__(self) -> None:
        self.at = 0.0
        self.before: dict[str, float] = {}

    def since_last(self, counters: dict[str, float]) -> dict[str, float]:
        """By how much each grew since the last call. New ones are left out, and those that began anew."""
        before, self.before = self.before, counters
        return {name: n - before[name] for name, n in counters.items() if name in before and n >= before[name]}

    def seconds(self) -> float:
        """Since the last call; infinite for the first. Time in which the host slept does not count."""
        before, self.at = self.at, time.monotonic()
        return self.at - before if before else float("inf")


class Probe:
    def __init__(self, folder: Path, nvml: Any = pynvml) -> None:
        self.mount, _ = mount_of(folder)
        self.gpus = Gpus(nvml)
        self.cores, self.disks, self.network = Growth(), Growth(), Growth()
        self.last = Reading()

    def read(self) -> Reading:
        """Rates and percentages of processors are means since the reading before: the first has none."""
        reading = Reading()
        for part, read in {
            "cpu": self.read_cores,
            "load": self.read_load,
            "memory": self.read_memory,
            "swap": self.read_swap,
            f"disk.{self.mount}": self.read_mount,
            "disk": self.read_disks,
            "network": self.read_network,
        }.items():
            with reading.without(part, *TROUBLE):
                read(reading)
        self.gpus.read(reading)
        self.say(reading.absent)
        self.last = reading
        return reading

    def say(self, absent: dict[str, str]) -> None:
        """Once per thing and reason. What was there and is gone concerns the administrator."""
        for what, why in absent.items():
            if self.last.absent.get(what) != why:
                was_there = any(name.startswith(what) for name in self.last.values)
                log.log(logging.WARNING if was_there else logging.INFO, "%s is not monitored: %s", what, why)

    def read_cores(self, reading: Reading) -> None:
        counters: dict[str, float] = {}
        for number, times in enumerate(psutil.cpu_times(percpu=True)):
            counters[f"{number}.idle"] = times.idle + times.iowait
            # All else, but for guests: their time is part of user and nice.
            counters[f"{number}.busy"] = sum(times[:3]) + times.irq + times.softirq + times.steal
        grown = self.cores.since_last(counters)
        whole = [name.removesuffix(".idle") for name in grown if name.endswith(".idle")]
        shares = [(core, grown[f"{core}.busy"], grown[f"{core}.idle"]) for core in whole if f"{core}.busy" in grown]
        for core, busy, idle in shares:
            if busy + idle > 0:
                reading.add(f"cpu.{core}.percent", 100 * busy / (busy + idle))
        if (total := sum(busy + idle for _, busy, idle in shares)) > 0:
            reading.add("cpu.percent", 100 * sum(busy for _, busy, _ in shares) / total)

    def read_load(self, reading: Reading) -> None:
        for minutes, load in zip((1, 5, 15), os.getloadavg(), strict=True):
            reading.add(f"load.{minutes}", load)

    def read_memory(self, reading: Reading) -> None:
        memory = psutil.virtual_memory()
        reading.add("memory.used", memory.total - memory.available)
        reading.add("memory.total", memory.total)

    def read_swap(self, reading: Reading) -> None:
        swap = psutil.swap_memory()
        reading.add("swap.used", swap.used)
        reading.add("swap.total", swap.total)

    def read_mount(self, reading: Reading) -> None:
        space = psutil.disk_usage(self.mount)
        reading.add(f"disk.{self.mount}.used", space.used)
        reading.add(f"disk.{self.mount}.free", space.free)

    def read_disks(self, reading: Reading) -> None:
        """Of the hardware alone: what is stacked on it would count the same bytes again."""
        disks = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        real = with_hardware("block", disks)
        counters = {f"{disk}.read": disks[disk].read_bytes for disk in real}
        counters |= {f"{disk}.written": disks[disk].write_bytes for disk in real}
        add_rates(reading, "disk", self.disks, counters)

    def read_network(self, reading: Reading) -> None:
        """Of the hardware, as with disks. A container has none: there it is all but the loopback."""
        links = psutil.net_io_counters(pernic=True, nowrap=False)
        real = with_hardware("net", links) or [link for link in links if link != "lo"]
        counters = {f"{link}.received": links[link].bytes_recv for link in real}
        counters |= {f"{link}.sent": links[link].bytes_sent for link in real}
        add_rates(reading, "network", self.network, counters)


def add_rates(reading: Reading, part: str, growth: Growth, counters: dict[str, float]) -> None:
    """The sum over devices of how fast their counters grow, by the direction that ends their names."""
    seconds, grown = growth.seconds(), growth.since_last(counters)
    sums: dict[str, float] = {}
    for name, n in grown.items():
        direction = name.rpartition(".")[2]
        sums[direction] = sums.get(direction, 0) + n
    for direction, n in sums.items():
        if seconds > 0:
            reading.add(f"{part}.{direction}", n / seconds)


def with_hardware(kind: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if (DEVICES / kind / name / "device").exists()]


def mount_of(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> tuple[str, str]:
    """Where the file system of the folder is mounted, and its type; of two on the same place the later one counts."""
    folder, deepest = folder.resolve(), ("/", "")
    for line in mounts.read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        place = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), left.split()[4])
        if folder.is_relative_to(place) and len(place) >= len(deepest[0]):
            deepest = place, right.split()[0]
    return deepest
