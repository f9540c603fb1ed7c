"""A job's progress for people at a terminal: one line that changes; in a file or a pipe a line now and then."""

import time
from typing import TextIO

from jobs.models import Job, State

WIDTH, QUIET_SECONDS, QUIET_PERCENT = 24, 30.0, 10.0


class ProgressLine:
    def __init__(self, out: TextIO) -> None:
        self.out, self.live = out, out.isatty()
        self.last: tuple[str, str, float, float] = ("", "", -QUIET_PERCENT, -QUIET_SECONDS)
        self.length = 0

    def __call__(self, job: Job) -> None:
        if self.live:
            text = line(job)
            self.out.write("\r" + text.ljust(self.length))
            self.length = len(text)
        elif self.worth(job):
            self.out.write(line(job) + "\n")
        self.out.flush()

    def worth(self, job: Job) -> bool:
        state, stage, percent, at = self.last
        same = state == job.state and stage == job.stage and job.percent < percent + QUIET_PERCENT
        if same and time.monotonic() < at + QUIET_SECONDS:
            return False
        self.last = (job.state, job.stage, job.percent, time.monotonic())
        return True

    def end(self) -> None:
        if self.live and self.length:
            self.out.write("\n")
            self.out.flush()


def line(job: Job) -> str:
    if job.state == State.QUEUED:
        return f"job {job.pk}: waiting"
    filled = round(WIDTH * job.percent / 100)
    parts = [f"[{'#' * filled}{'.' * (WIDTH - filled)}] {job.percent:5.1f} %", job.stage]
    if job.rate and job.state == State.RUNNING:
        parts.append(f"{job.rate:,.0f} {job.unit}/s")
    if job.eta_seconds is not None and job.state == State.RUNNING:
        parts.append(f"about {job.eta_seconds:,.0f} s left")
    if job.state != State.RUNNING:
        parts.append(job.state)
    return "  ".join(filter(None, parts))
