"""Writes the progress of a running job to its row, from a thread of its own: the work never waits for the database."""

import logging
import threading
import time
from dataclasses import asdict, replace

from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from jobs.context import Context, Snapshot
from jobs.live import publish_job
from jobs.models import Job, Metric, Progress, State

INTERVAL = 0.12  # seconds between writes: about eight a second at most
OWNERSHIP = 5.0  # seconds between looks whether the job is still ours
HISTORY_PERCENT, HISTORY_SECONDS = 5.0, 60.0

log = logging.getLogger(__name__)


class Reporter(threading.Thread):
    def __init__(self, job: Job, context: Context) -> None:
        super().__init__(name="reporter", daemon=True)
        self.job, self.context = job, context
        self.over = threading.Event()
        self.lost = False  # somebody else has the job now: nothing may be written any more
        self.kept = (job.percent, time.monotonic())  # the last point of the history
        self.latest: tuple[int, dict[str, float | None]] = (-1, {})

    def run(self) -> None:
        while not self.over.is_set() and not self.lost:
            changed = self.context.changed.wait(OWNERSHIP)
            self.flush(changed)
            self.over.wait(INTERVAL)
        connection.close()

    def stop(self) -> None:
        """The last word is never swallowed: it is written after the thread has ended."""
        self.over.set()
        self.context.changed.set()
        self.join(30)
        if not self.lost and not self.flush(True):  # this thread's connection may have idled for hours
            self.flush(True)

    def flush(self, changed: bool) -> bool:
        """Whether the database took it."""
        self.context.changed.clear()
        with self.context.lock:
            snapshot = replace(self.context.snapshot)
        metrics = self.context.take_metrics()
        try:
            with transaction.atomic():
                self.write(snapshot, metrics, changed)
        except DatabaseError as error:
            # The work goes on; the row catches up when the database answers again.
            log.warning("Progress of job %s is not written: %s", self.job.pk, error)
            connection.close()
            self.context.give_back(metrics)
            self.over.wait(1)
            return False
        return True

    def write(self, snapshot: Snapshot, metrics: dict[int, dict[str, float | None]], changed: bool) -> None:
        mine = Job.objects.filter(pk=self.job.pk, state=State.RUNNING, attempt=self.job.attempt)
        if not changed:
            self.check(mine.exists())
            return
        self.check(bool(mine.update(**asdict(snapshot), progress_at=timezone.now())))
        if self.lost:
            return
        self.write_metrics(metrics)
        self.write_history(snapshot)
        publish_job(self.job)

    def check(self, mine: bool) -> None:
        if not mine:
            self.lost, self.context.wished = True, "stop"

    def write_metrics(self, metrics: dict[int, dict[str, float | None]]) -> None:
        if not metrics:
            return
        step, values = self.latest
        if step in metrics:  # measured in two parts, and the first is already written
            metrics[step] = {**values, **metrics[step]}
        rows = [Metric(job=self.job, step=step, values=values) for step, values in metrics.items()]
        Metric.objects.bulk_create(rows, update_conflicts=True, unique_fields=["job", "step"], update_fields=["values"])
        self.latest = max(metrics.items())

    def write_history(self, now: Snapshot) -> None:
        percent, at = self.kept
        if now.percent - percent < HISTORY_PERCENT and time.monotonic() - at < HISTORY_SECONDS:
            return
        self.kept = (now.percent, time.monotonic())
        Progress.objects.create(
            job=self.job, stage=now.stage, percent=now.percent, done=now.done, total=now.total, rate=now.rate
        )
