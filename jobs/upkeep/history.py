"""Old histories are thinned: a chart needs no more points than it has pixels."""

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import time, timedelta
from functools import partial
from typing import Any

from django.db.models import Count
from django.utils import timezone

from jobs.context import Context
from jobs.models import Job, Metric, Progress, State
from jobs.upkeep.task import Step, Task

OLD = timedelta(days=30)  # since the job ended
METRICS, PROGRESS = 500, 100  # points of each series of a job that stay
BATCH = 500  # rows deleted at once


Row = tuple[int, float, Iterable[str]]  # its key, where it stands, the names of what it holds


def metric_steps(ctx: Context) -> Iterator[Step]:
    for job in long_ones("metrics", METRICS):
        rows = job.metrics.order_by("step").values_list("pk", "step", "values")
        yield from thinning(Metric, job, list(rows), METRICS)


def progress_steps(ctx: Context) -> Iterator[Step]:
    for job in long_ones("progress_history", PROGRESS):
        rows = job.progress_history.order_by("at").values_list("pk", "at")
        yield from thinning(Progress, job, [(pk, at.timestamp(), ("percent",)) for pk, at in rows], PROGRESS)


def long_ones(rows: str, points: int) -> Iterable[Job]:
    ended = Job.objects.filter(state__in=State.finished(), finished_at__lt=timezone.now() - OLD)
    return ended.annotate(n_points=Count(rows)).filter(n_points__gt=points).order_by("pk")


def thinning(model: type[Any], job: Job, rows: Sequence[Row], points: int) -> Iterator[Step]:
    stay = kept(rows, points)
    gone = [key for key, _, _ in rows if key not in stay]
    if gone:
        what = f"job {job.pk} ({job}): {len(gone):,} of {len(rows):,} points"
        yield Step(what, "point removed", partial(delete, model, gone), n=len(gone))


def kept(rows: Sequence[Row], points: int) -> set[int]:
    """The keys of the rows that stay, of rows in order: the first, and of each series the last in each of so many equal
    intervals. Thinned again, they are the same."""
    first, last = rows[0][1], rows[-1][1]
    width = (last - first) / points or 1.0
    ends = {(name, math.ceil((place - first) / width)): key for key, place, names in rows for name in names}
    return {rows[0][0], rows[-1][0], *ends.values()}


def delete(model: type[Any], keys: list[int]) -> str:
    for first in range(0, len(keys), BATCH):
        model._default_manager.filter(pk__in=keys[first : first + BATCH]).delete()
    return ""


metrics = Task(
    "Metrics",
    f"Thins what jobs measured to {METRICS} points of each series, {OLD.days} days after they ended. The last stays.",
    time(4, 0),
    metric_steps,
    every="weekly",
)
progress = Task(
    "Progress",
    f"Thins the progress of jobs to {PROGRESS} points, {OLD.days} days after they ended. The last stays.",
    time(3, 50),
    progress_steps,
    every="weekly",
)
