"""What the monitor shows of a host over a window of time: its parts, with a chart for each thing that is measured."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from jobs.live import once
from mistudio.figures import Line, lines_chart
from mistudio.formats import NONE, binary, significant, thousands
from monitoring.history import AHEAD, READING, Interval, history
from monitoring.models import Host, Sample

POINTS = 120  # of a line, at least: a figure is 300 units wide
STEPS, LONGEST = 360, 60  # a figure is drawn anew when it moved by a step of its window, and after so many seconds
LATE = 10.0  # seconds without a reading, or three intervals
GIB, MIB = 2**-30, 2**-20


@dataclass(frozen=True)
class Window:
    label: str
    length: timedelta
    unit: str  # of the time axis
    of_unit: timedelta


HOUR, DAY = timedelta(hours=1), timedelta(days=1)
WINDOWS = {
    "1h": Window("1 h", HOUR, "min", timedelta(minutes=1)),
    "6h": Window("6 h", 6 * HOUR, "h", HOUR),
    "24h": Window("24 h", DAY, "h", HOUR),
    "7d": Window("7 days", 7 * DAY, "d", DAY),
}


@dataclass(frozen=True)
class Chart:
    """`*` stands for the number of the GPU, or for the path of the mount."""

    heading: str
    unit: str
    series: tuple[str, ...]
    keys: tuple[tuple[str, str], ...] = ()  # of several lines: the letter at the end, and its word
    times: float = 1
    all_of: tuple[str, ...] = ()  # series that add up to all that there is
    y_max: float | None = None
    width: int = 360  # units; about as wide as it is on a page, so that its text keeps its size


GPU = (
    Chart("Utilization", "%", ("gpu.*.utilization",), y_max=100, width=280),
    Chart("Memory", "GiB", ("gpu.*.memory",), times=GIB, all_of=("gpu.*.memory.total",), width=280),
    Chart("Temperature", "°C", ("gpu.*.temperature",), width=280),
    Chart("Power", "W", ("gpu.*.power",), width=280),
)
PARTS: dict[str, tuple[str, Sequence[Chart]]] = {
    "gpu": ("GPUs", GPU),
    "cpu": (
        "Processor",
        (Chart("Utilization", "%", ("cpu.percent",), y_max=100), Chart("Load, 1 min", "processes", ("load.1",))),
    ),
    "memory": (
        "Memory",
        (
            Chart("Used", "GiB", ("memory.used",), times=GIB, all_of=("memory.total",)),
            Chart("Swap", "GiB", ("swap.used",), times=GIB, all_of=("swap.total",)),
        ),
    ),
    "disk": (
        "Disk",
        (
            Chart("Used, data folder", "GiB", ("disk.*.used",), times=GIB, all_of=("disk.*.used", "disk.*.free")),
            Chart("Traffic", "MiB/s", ("disk.read", "disk.written"), (("R", "read"), ("W", "written")), MIB),
        ),
    ),
    "network": (
        "Network",
        (Chart("Traffic", "MiB/s", ("network.received", "network.sent"), (("R", "received"), ("S", "sent")), MIB),),
    ),
}
GPU_FACTS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("Clock of the multiprocessors", "clock.sm", lambda value: f"{thousands(value)} MHz"),
    ("Clock of the memory", "clock.memory", lambda value: f"{thousands(value)} MHz"),
    ("Fan", "fan", lambda value: f"{value} %"),
    ("Memory errors not corrected", "ecc.uncorrected", thousands),
)


@dataclass(frozen=True, eq=False)
class Past:
    """A host's readings over a window, and what was drawn of them."""

    window: Window
    until: datetime
    intervals: Sequence[Interval]
    every: int  # seconds between two readings
    drawn: dict[tuple[str, Chart], dict[str, Any] | None] = field(default_factory=dict)

    @property
    def resolution(self) -> int:
        return max((interval.seconds for interval in self.intervals), default=0)

    def last(self, names: Sequence[str]) -> list[float]:
        """The newest values of series that belong together; empty where they were never read."""
        known = (one.mean for one in reversed(self.intervals) if all(name in one.mean for name in names))
        return [mean[name] for mean in [next(known, {})] for name in names if mean]

    def line(self, name: str, times: float, letter: str) -> Line:
        """Time before the end, in the window's unit, and mean."""
        unit = self.window.of_unit
        return Line(
            [
                ((one.at + timedelta(seconds=one.seconds / 2) - self.until) / unit, times * one.mean[name])
                for one in self.intervals
                if name in one.mean
            ],
            letter,
        )

    def figure(self, chart: Chart, star: str) -> dict[str, Any] | None:
        if (star, chart) not in self.drawn:
            self.drawn[star, chart] = draw(chart, self, star)
        return self.drawn[star, chart]


@functools.lru_cache(maxsize=8)
def past(host: int, every: int, window: Window, step: int) -> Past:
    """Remembered for a step: the parts of a page, and all pages, share it until there is more to be seen."""
    until = timezone.now()
    return Past(window, until, history(Host(pk=host), until - window.length, until, POINTS), every)


@dataclass(frozen=True)
class Look:
    """At a host now, and at the window before."""

    host: Host
    newest: Sample | None
    late: bool
    past: Past

    def now(self, name: str) -> float | None:
        return None if self.newest is None or self.late else self.newest.mean.get(name)


def is_late(at: datetime, host: Host, now: datetime) -> bool:
    return (now - at).total_seconds() > max(LATE, 3 * host.facts.get("seconds", 0))


@once
def host_of(key: str) -> Host | None:
    """By its number, as it stands in the name of a topic."""
    return Host.objects.filter(pk=int(key)).first() if key.isdecimal() and len(key) < 19 else None


@once
def look(host: Host, window: Window) -> Look:
    now, every = timezone.now(), host.facts.get("seconds", 0)
    newest = host.samples.filter(resolution=READING, at__lte=now + AHEAD).order_by("-at").first()
    late = newest is None or is_late(newest.at, host, now)
    step = min(LONGEST, window.length.total_seconds() / STEPS)
    return Look(host, newest, late, past(host.pk, every, window, int(now.timestamp() // step)))


def part(name: str, seen: Look) -> dict[str, Any]:
    heading, charts = PARTS[name]
    groups = gpus(seen) if name == "gpu" else [{"charts": figures(charts, seen, mount_of(seen))}]
    absent = seen.host.facts.get("absent", {})
    # What one GPU lacks is said beside it.
    known = [what for what in absent if what == name or (what.startswith(f"{name}.") and name != "gpu")]
    why = "; ".join(absent[what] for what in known)
    return {"name": name, "heading": heading, "groups": groups, "why": why, "look": seen}


def gpus(seen: Look) -> list[dict[str, Any]]:
    """All that were seen since the site started, also those that are lost."""
    facts = seen.host.facts
    names, absent = facts.get("gpus", {}), facts.get("absent", {})
    lost = {what.split(".")[1] for what in absent if what.startswith("gpu.")}
    return [
        {
            "title": f"GPU {number}",
            "model": names.get(number, ""),
            "why": absent.get(f"gpu.{number}", ""),
            "charts": figures(GPU, seen, number),
            "facts": [
                (label, said(seen.now(f"gpu.{number}.{key}"), write, absent.get(f"gpu.{number}.{key}", "")))
                for label, key, write in GPU_FACTS
            ],
            "processes": processes(seen, number),
        }
        for number in sorted(names.keys() | lost, key=int)
    ]


def said(value: float | None, write: Callable[[Any], str], why: str) -> str:
    return write(value) if value is not None else f"not measured{f': {why}' if why else ''}"


def processes(seen: Look, gpu: str) -> list[tuple[str, str]]:
    """Pid and memory of those that hold most of it."""
    start = f"gpu.{gpu}.process."
    held = {name: value for name, value in seen.newest.mean.items() if name.startswith(start)} if seen.newest else {}
    ranked = sorted(held.items(), key=lambda one: -one[1])
    return [(name.removeprefix(start).partition(".")[0], binary(value)) for name, value in ranked[:10]]


def mount_of(seen: Look) -> str:
    """The path under which the file system of the data folder is mounted there."""
    names = seen.past.intervals[-1].mean if seen.past.intervals else {}
    found = (name for name in names if name.startswith("disk./") and name.endswith(".used"))
    return next(found, "").removeprefix("disk.").removesuffix(".used")


def figures(charts: Sequence[Chart], seen: Look, star: str) -> list[dict[str, Any]]:
    drawn = ((chart, seen.past.figure(chart, star)) for chart in charts)
    return [{**figure, "now": now(chart, seen, star)} for chart, figure in drawn if figure]


def now(chart: Chart, seen: Look, star: str) -> list[tuple[str, str]]:
    """Of each line its word and its newest value."""
    values = [seen.now(name.replace("*", star)) for name in chart.series]
    words = [word for _, word in chart.keys] or [""]
    return [
        (word, NONE if value is None else significant(value * chart.times))
        for word, value in zip(words, values, strict=True)
    ]


def draw(chart: Chart, over: Past, star: str) -> dict[str, Any] | None:
    """None where nothing of it was measured, or there is none of it."""
    names = [name.replace("*", star) for name in chart.series]
    letters = [letter for letter, _ in chart.keys] or [""]
    lines = [over.line(name, chart.times, letter) for name, letter in zip(names, letters, strict=True)]
    whole = chart.times * sum(over.last([name.replace("*", star) for name in chart.all_of]))
    if not any(line.points for line in lines) or (chart.all_of and not whole):
        return None
    unit = over.window.of_unit
    svg = lines_chart(
        lines,
        title=chart.heading,
        unit=chart.unit,
        x_label=over.window.unit,
        x_min=-(over.window.length / unit),
        gap=3 * timedelta(seconds=max(over.resolution, over.every)) / unit,
        y_min=0,
        y_max=whole or chart.y_max,
        width=chart.width,
        reference=(whole, "all") if whole else None,
    )
    peak = max(one.peak[name] for one in over.intervals for name in names if name in one.peak)
    return {
        "heading": chart.heading,
        "unit": chart.unit,
        "figure": svg,
        "peak": significant(peak * chart.times),
        "whole": significant(whole) if whole else "",
    }
