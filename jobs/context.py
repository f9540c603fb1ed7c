"""What a kind may do while it runs. Knows no Django: a kind can be run and tested with nothing else."""

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.errors import Cancelled, Paused, Stopped

WINDOW_SECONDS = 30.0
LOG_SECONDS = 10.0  # between two lines of metrics
WISHES: dict[str, type[Exception]] = {"cancel": Cancelled, "pause": Paused, "stop": Stopped}


@dataclass(frozen=True)
class Snapshot:
    """Where a job is. `percent` is of all the work, below 100 until it has succeeded."""

    stage: str = ""
    stage_index: int = 0
    done: float = 0
    total: float | None = None
    unit: str = ""
    percent: float = 0
    rate: float | None = None  # units per second, over the last half minute
    eta_seconds: float | None = None


@dataclass
class Pace:
    """Rates over a recent window. Positions jump at a resume: a jump starts a new window."""

    seconds: float = WINDOW_SECONDS
    points: deque[tuple[float, float]] = field(default_factory=deque)

    def reset(self, at: float, position: float) -> None:
        self.points = deque([(at, position)])

    def add(self, at: float, position: float) -> None:
        self.points.append((at, position))
        # Keep one point older than the window, so that a slow job has a rate too.
        while len(self.points) > 2 and (self.points[1][0] < at - self.seconds or len(self.points) > 400):
            self.points.popleft()

    def rate(self) -> float | None:
        if len(self.points) < 2:
            return None
        (start, low), (end, high) = self.points[0], self.points[-1]
        return (high - low) / (end - start) if end > start and high > low else None


class Context:
    """`report` and `wished` are how it is joined to a database; without them a kind just runs."""

    def __init__(
        self,
        job_id: int = 0,
        attempt: int = 1,
        stages: dict[str, float] | None = None,
        percent: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job_id, self.attempt = job_id, attempt
        self.stages = stages or {}
        self.clock = clock
        self.lock = threading.Lock()  # the reporter reads from its own thread
        self.snapshot = Snapshot(percent=percent)
        self.metrics: dict[int, dict[str, float | None]] = {}
        self.changed = threading.Event()
        self.wished = ""
        self.pace, self.overall = Pace(), Pace(seconds=60)
        self.overall.reset(clock(), percent)
        self.moved = False  # has the current stage counted anything yet?
        self.metric_logged = -math.inf

    def stage(self, name: str, total: float | None = None, unit: str = "") -> None:
        index = list(self.stages).index(name) if name in self.stages else self.snapshot.stage_index
        with self.lock:
            self.moved = False
            self.pace.reset(self.clock(), 0)
            self.snapshot = replace(
                self.snapshot, stage=name, stage_index=index, done=0, total=total, unit=unit, rate=None
            )
            self._recount()
        self.log(f"{name}: {total:,.0f} {unit}" if total and unit else name)

    def advance(self, k: float = 1) -> None:
        with self.lock:
            self._place(self.snapshot.done + k)

    def at(self, done: float) -> None:
        """Stand at `done` of the stage. The first position of a stage is where it resumes, and counts for no rate."""
        with self.lock:
            if not self.moved:
                self.pace.reset(self.clock(), done)
                self.moved = True
            before = self.snapshot.percent
            self._place(done)
            if self.snapshot.percent - before > 1 and len(self.pace.points) < 3:
                self.overall.reset(self.clock(), self.snapshot.percent)

    def reach(self, done: float) -> None:
        """Stand there, and leave where that is wished for: see `check`."""
        self.at(done)
        self.check()

    def reaching(self, stage: str, unit: str = "") -> Callable[[float, float], None]:
        """What is told how much of how much is done: it enters the stage when it is told so for the first time."""

        def reached(done: float, total: float) -> None:
            if self.snapshot.stage != stage:
                self.stage(stage, total, unit)
            self.reach(done)

        return reached

    def _place(self, done: float) -> None:
        self.moved = True
        self.pace.add(self.clock(), done)
        self.snapshot = replace(self.snapshot, done=done, rate=self.pace.rate())
        self._recount()

    def _recount(self) -> None:
        now = self.snapshot
        percent = min(99.9, max(now.percent, self._percent()))
        self.overall.add(self.clock(), percent)
        pace = self.overall.rate()
        eta = (100 - percent) / pace if pace else None
        self.snapshot = replace(now, percent=percent, eta_seconds=eta)
        self.changed.set()

    def _percent(self) -> float:
        """Weights of the stages before this one, and the part of this one that is done."""
        now, weights = self.snapshot, list(self.stages.values())
        if not weights or not sum(weights):
            return 0
        part = min(1.0, now.done / now.total) if now.total else 0.0
        return 100 * (sum(weights[: now.stage_index]) + part * weights[now.stage_index]) / sum(weights)

    def metric(self, step: int, **values: float) -> None:
        """Measured at `step`; several calls for one step add up. What is not finite is kept as missing."""
        said = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        with self.lock:
            self.metrics.setdefault(step, {}).update(said)
        self.changed.set()
        if self.clock() - self.metric_logged >= LOG_SECONDS:
            self.metric_logged = self.clock()
            self.log(f"step {step:,}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def log(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stdout, flush=True)  # noqa: T201  captured into log.txt

    def wish(self) -> str | None:
        """ "cancel", "pause", "finish" or "stop", else None. Cheap: ask at every step."""
        return self.wished or None

    def check(self) -> None:
        """Raises Cancelled, Paused or Stopped when that was asked for."""
        if error := WISHES.get(self.wished):
            raise error

    def take_metrics(self) -> dict[int, dict[str, Any]]:
        with self.lock:
            taken, self.metrics = self.metrics, {}
        return taken

    def give_back(self, metrics: dict[int, dict[str, Any]]) -> None:
        """They could not be written; newer values of the same step count."""
        with self.lock:
            for step, values in metrics.items():
                self.metrics[step] = {**values, **self.metrics.get(step, {})}
        self.changed.set()
