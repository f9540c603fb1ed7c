"""Old logs, and old runs of upkeep itself."""

import shutil
from collections.abc import Iterator
from datetime import time, timedelta
from functools import partial
from pathlib import Path

from django.utils import timezone

from jobs.context import Context
from jobs.folders import bytes_of
from jobs.logs import log_path
from jobs.models import Job, State
from jobs.upkeep.schedules import KIND, newest
from jobs.upkeep.task import Step, Task

LOGS, RUNS = timedelta(days=90), timedelta(days=30)  # kept since the job ended


def steps(ctx: Context) -> Iterator[Step]:
    now = timezone.now()
    ended = Job.objects.filter(state__in=State.finished()).order_by("pk")
    last = {job.pk for job in newest().values()}
    runs = [job for job in ended.filter(kind=KIND, finished_at__lt=now - RUNS) if job.pk not in last]
    for job in runs:
        what = f"run {job.pk} ({job}) of {job.finished_at:%Y-%m-%d}"
        yield Step(what, "run removed", partial(remove_run, job), bytes=bytes_of(job.folder))
    others = ended.filter(finished_at__lt=now - LOGS).exclude(pk__in=[job.pk for job in runs])
    for pk in others.values_list("pk", flat=True).iterator():
        path = log_path(Job(pk=pk))
        if path.is_file():
            what = f"log of job {pk}"
            yield Step(what, "log removed", partial(remove_log, path), bytes=path.stat().st_size)


def remove_run(job: Job) -> str:
    """The row goes first: a kill in between leaves a folder without a row, which the orphans' task removes."""
    folder = job.folder
    job.delete()
    shutil.rmtree(folder, ignore_errors=True)
    return ""


def remove_log(path: Path) -> str:
    path.unlink(missing_ok=True)
    return ""


task = Task(
    "Logs",
    f"Removes logs {LOGS.days} days after their job ended, and runs of upkeep after {RUNS.days} days. The last run of "
    "each task stays.",
    time(3, 40),
    steps,
)
