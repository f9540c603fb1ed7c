"""What is read of a host: named series with their units, and one reading of them."""

import contextlib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

HOUR, DAY = 3600, 86400
# Resolution of rows in seconds → for how many seconds they are kept. 1: a reading as it was taken.
KEPT = {1: HOUR, 10: DAY, 60: 7 * DAY, 600: 90 * DAY}

Values = dict[str, float]


@dataclass(frozen=True)
class Series:
    pattern: str  # <core>, <gpu> and <pid> stand for numbers, <mount> for the path where a file system is mounted
    unit: str
    what: str
    coarsest: int = 600  # the last resolution in which it is kept


SERIES = (
    Series("cpu.percent", "%", "processor time in use, of all cores together"),
    Series("cpu.<core>.percent", "%", "processor time in use of one core", coarsest=10),
    Series("load.1", "", "processes that ran or waited to, mean of the last minute"),
    Series("load.5", "", "the same of five minutes"),
    Series("load.15", "", "the same of fifteen minutes"),
    Series("memory.used", "bytes", "memory that programs cannot have"),
    Series("memory.total", "bytes", "memory of the host"),
    Series("swap.used", "bytes", "swap in use"),
    Series("swap.total", "bytes", "swap of the host"),
    Series("disk.<mount>.used", "bytes", "file system of the data folder, in use"),
    Series("disk.<mount>.free", "bytes", "the same, left for miStudio"),
    Series("disk.read", "bytes/s", "read from all disks"),
    Series("disk.written", "bytes/s", "written to all disks"),
    Series("network.received", "bytes/s", "received from other hosts"),
    Series("network.sent", "bytes/s", "sent to other hosts"),
    Series("gpu.<gpu>.utilization", "%", "time in which the GPU computed"),
    Series("gpu.<gpu>.memory", "bytes", "GPU memory in use"),
    Series("gpu.<gpu>.memory.total", "bytes", "GPU memory"),
    Series("gpu.<gpu>.temperature", "°C", "temperature of the GPU"),
    Series("gpu.<gpu>.power", "W", "power that the GPU draws"),
    Series("gpu.<gpu>.clock.sm", "MHz", "clock of the multiprocessors"),
    Series("gpu.<gpu>.clock.memory", "MHz", "clock of the memory"),
    Series("gpu.<gpu>.fan", "%", "speed that the fan is told to have"),
    Series("gpu.<gpu>.ecc.uncorrected", "errors", "memory errors since the driver started that could not be corrected"),
    Series("gpu.<gpu>.process.<pid>.memory", "bytes", "GPU memory of one process", coarsest=1),
)
DIGITS = {"%": 1, "W": 1, "": 2}  # behind the point; others are whole numbers


@functools.cache
def matcher(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(<\w+>)", pattern)
    kinds = {"<mount>": "/.*"}
    return re.compile("".join(kinds.get(part, r"\d+") if part[:1] == "<" else re.escape(part) for part in parts))


@functools.lru_cache(maxsize=4096)
def series_of(name: str) -> Series | None:
    """None for a name of another version."""
    return next((series for series in SERIES if matcher(series.pattern).fullmatch(name)), None)


def rounded(name: str, value: float) -> float:
    """To the digits that its unit is told with: rows stay small."""
    series = series_of(name)
    digits = DIGITS.get(series.unit, 0) if series else 0
    return round(value, digits) if digits else round(value)


@dataclass
class Reading:
    """Values by the name of their series, and what could not be read: name or beginning of names → why."""

    values: Values = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values[name] = rounded(name, value)

    @contextlib.contextmanager
    def without(self, what: str, *errors: type[Exception]) -> Iterator[None]:
        """Goes on without `what` when the block raises one of the errors."""
        try:
            yield
        except errors as error:
            self.absent[what] = str(error) or type(error).__name__
