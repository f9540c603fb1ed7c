"""Whose the work of a host is: the jobs that ran on it over a window of time, and the processes of those that run.

A team sees its own jobs by name, and of those of others only that they are there."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q, QuerySet
from django.utils import timezone

from jobs.models import Job, JobEvent, State
from mistudio.figures.axes import short, span_axis
from mistudio.formats import duration
from mistudio.monitored import Look
from mistudio.templatetags.ui import STATES
from monitoring.models import Host

MOST_JOBS = 50
NARROWEST = 0.4  # of a bar, in percent of the width
HEIGHT = 26  # of a lane, in units of the page
CLOCK = "%-d %b %H:%M"
SILENT = timedelta(seconds=15)  # three heartbeats: what a job said before is no longer of now


def jobs_of(host: Host) -> QuerySet[Job]:
    """The newest whose last attempt ran there, without what they carry."""
    there = Job.objects.filter(host__startswith=f"{host.name}/", started_at__isnull=False)
    return there.select_related("owner").defer("params", "result", "error_detail").order_by("-started_at")


# ---- which job ran when


@dataclass(frozen=True)
class Run:
    """A stretch of time in which a job ran there."""

    job: Job
    since: datetime
    until: datetime | None  # None: it still runs
    state: str  # the one that ended it, or in which it is

    @property
    def words(self) -> str:
        word = "Back in the queue" if self.state == State.QUEUED else STATES[self.state][2]
        if self.until is None:
            return f"{word} since {self.since:{CLOCK}}"
        return f"{word}, {self.since:{CLOCK}} to {self.until:{CLOCK}}, {duration(self.until - self.since)}"


def runs(host: Host, since: datetime) -> list[Run]:
    """Of the newest jobs, oldest first. Two queries."""
    lately = (
        Q(state=State.RUNNING)
        | Q(finished_at__gte=since)
        | Q(paused_at__gte=since)
        | Q(state=State.QUEUED, queued_at__gte=since)
    )
    jobs = {job.pk: job for job in jobs_of(host).filter(lately)[:MOST_JOBS]}
    moves = JobEvent.objects.filter(job__in=jobs, detail__has_key="state").order_by("pk")
    found = [
        run for job in jobs.values() for run in stretches(job, [one for one in moves if one.job_id == job.pk], host)
    ]
    return sorted((run for run in found if run.until is None or run.until >= since), key=lambda run: run.since)


def stretches(job: Job, moves: Sequence[JobEvent], host: Host) -> Iterator[Run]:
    """From each start on this host to whatever state came next."""
    began = None
    for move in moves:
        if began:
            yield Run(job, began, timezone.localtime(move.at), move.detail["state"])
        here = move.detail["state"] == State.RUNNING and move.detail.get("host") == host.name
        began = timezone.localtime(move.at) if here else None
    if began:
        yield Run(job, began, None, job.shown_state)


def lanes(seen: Look, team: int) -> dict[str, Any]:
    """Bars on the time axis of the charts. Jobs that ran at the same time stand in different lanes."""
    past = seen.past
    found = runs(seen.host, past.until - past.window.length)
    ends: list[float] = []  # of each lane so far
    bars = []
    for run in found:
        left, width = extent(run, past.until, past.window.length)
        lane = next((lane for lane, end in enumerate(ends) if end <= left), len(ends))
        ends[lane : lane + 1] = [left + width]
        place = {"x": percent(left), "width": percent(width), "y": lane * HEIGHT}
        bars.append({**place, "run": run, "own": run.job.team_id == team, "symbol": STATES[run.state][1]})
    bottom = HEIGHT * max(1, len(ends))
    return {
        "look": seen,
        "bars": bars,
        "bottom": bottom,
        "height": bottom + 18,
        "ticks": list(ticks(past.window.length / past.window.of_unit, past.window.unit)),
        "jobs": len({run.job.pk for run in found}),
        "most": MOST_JOBS,
    }


def extent(run: Run, until: datetime, length: timedelta) -> tuple[float, float]:
    """Left edge and width in percent of the window."""
    left, right = (
        min(100.0, max(0.0, 100 * (1 - (until - at) / length))) for at in (run.since, run.until or timezone.now())
    )
    width = max(NARROWEST, right - left)
    return min(left, 100 - width), width


def ticks(length: float, unit: str) -> Iterator[tuple[str, str, str]]:
    """Of the axis that the charts have: place, where the label stands, label."""
    axis = span_axis([], start=-length)
    for number, tick in enumerate(axis.ticks):
        share = axis.share(tick)
        anchor = "end" if share > 0.97 else "mid" if share > 0.03 else ""
        yield percent(100 * share), anchor, f"{short(tick)} {unit}" if number == 0 else short(tick)


def percent(value: float) -> str:
    return f"{value:.2f}%"


# ---- whose process is this


def processes(seen: Look, team: int) -> dict[str, Any]:
    """Those of the jobs that run there, and those on GPUs that are of none of them."""
    running = list(jobs_of(seen.host).filter(state=State.RUNNING)[:MOST_JOBS])
    rows: list[dict[str, Any]] = [
        {"job": job, "own": job.team_id == team, "process": process} for job in running for process in now(job)
    ]
    known = {one["pid"] for job in running for one in job.usage.get("processes", ())} | {job.pid for job in running}
    return {"look": seen, "rows": rows, "strangers": sorted(strangers(seen, known).items())}


def now(job: Job) -> Iterable[dict[str, Any]]:
    """Its processes as it said at its last heartbeat; if it said nothing, the one that leads them."""
    fresh = job.heartbeat_at is not None and timezone.now() - job.heartbeat_at < SILENT
    return (job.usage.get("processes") if fresh else None) or [{"pid": job.pid}]


def strangers(seen: Look, known: set[int | None]) -> dict[int, float]:
    """GPU memory by process, of those that are none of `known`."""
    held: dict[int, float] = {}
    for name, value in seen.newest.mean.items() if seen.newest and not seen.late else ():
        if name.startswith("gpu.") and ".process." in name:
            pid = int(name.split(".")[3])
            held[pid] = held.get(pid, 0) + value
    return {pid: memory for pid, memory in held.items() if pid not in known}
