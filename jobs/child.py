"""One attempt of a job, in the process that does the work. It writes how it ended; the supervisor moves the row."""

import contextlib
import errno
import faulthandler
import importlib.metadata
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError, connections
from django.utils.module_loading import import_string

from jobs import processes
from jobs.context import Context
from jobs.errors import Cancelled, Paused, Stopped, classify
from jobs.kinds import load_kind, make_params
from jobs.log_format import speaking_of
from jobs.models import Job, State
from jobs.outcome import NO_SPACE, Outcome, plain, write_outcome
from jobs.report import Reporter
from jobs.secrets import hidden

SIGNALS = {
    signal.SIGTERM: "stop",
    signal.SIGINT: "cancel",
    signal.SIGUSR1: "pause",
    signal.SIGUSR2: "finish",
}
ENDINGS: dict[type[BaseException], str] = {Cancelled: "cancelled", Paused: "paused", Stopped: "stopped"}


PATIENCE = 300.0  # seconds


def run(job_id: int, attempt: int) -> int:
    """Exit code: 0 when the job did what was asked, 1 when it failed, 3 when it belongs to somebody else by now."""
    job = Job.objects.filter(pk=job_id, attempt=attempt, state=State.RUNNING).first()
    if job is None or not sign_in(job):
        return 3
    with speaking_of(job):
        return attempt_here(job)


def attempt_here(job: Job) -> int:
    faulthandler.enable()
    give_way()
    context = Context(job.pk, job.attempt, getattr(load_kind(job.kind), "STAGES", {}), job.percent)
    listen(context)
    watch_parent()
    reporter = Reporter(job, context)
    reporter.start()
    outcome = perform(job, context)
    reporter.stop()
    if reporter.lost:
        return 3
    return say(job, outcome)


def say(job: Job, outcome: Outcome) -> int:
    try:
        write_outcome(job, outcome)
    except OSError as error:
        os.write(2, f"How the job ended cannot be written: {error}\n".encode())
        return NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT) else 1
    return int(outcome.how == "failed")


def sign_in(job: Job) -> bool:
    """Leave our pid on the row, for the reaper. False when the job was given to another attempt meanwhile."""
    mine = Job.objects.filter(pk=job.pk, state=State.RUNNING, attempt=job.attempt)
    return bool(mine.update(pid=os.getpid(), pid_start=processes.start_of(os.getpid()), version=version()))


def version() -> str:
    try:
        return importlib.metadata.version("mistudio")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return getattr(settings, "MISTUDIO_VERSION", "")


def give_way() -> None:
    """The pages come first, and if the machine runs out of memory the kernel shall take this process and no other."""
    os.nice(5)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def listen(context: Context) -> None:
    def hear(number: int, frame: FrameType | None) -> None:
        # A later word counts more, but nothing takes back a stop: the process that said it may be gone.
        if context.wished != "stop":
            context.wished = SIGNALS[signal.Signals(number)]

    for number in SIGNALS:
        signal.signal(number, hear)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, processes.HELD)


def watch_parent() -> None:
    """An orphan got SIGTERM already. If it still lives after the grace, it is stuck, and ends itself with its group."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        time.sleep(settings.STOP_GRACE_SECONDS)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="orphan watch", daemon=True).start()


def perform(job: Job, context: Context) -> Outcome:
    try:
        result = work(job, context)
        return Outcome(job.attempt, "succeeded", result=result)
    except tuple(ENDINGS) as ending:
        return Outcome(job.attempt, ENDINGS[type(ending)])
    except BaseException as error:  # also SystemExit: whatever a kind raises, the job gets an ending
        detail = traceback.format_exc()
        os.write(2, hidden(detail).encode(errors="replace"))
        return Outcome(job.attempt, "failed", error=plain(asdict(classify(error))), detail=plain(detail[-8000:]))


def work(job: Job, context: Context) -> dict[str, Any]:
    kind = load_kind(job.kind)
    result = plain(kind.run(make_params(kind, job.params), context) or {})
    if ingest := getattr(kind, "ON_SUCCESS", ""):
        take_over(import_string(ingest), job, result)
    return result


def take_over(ingest: Callable[[Job, dict[str, Any]], None], job: Job, result: dict[str, Any]) -> None:
    """It may be done twice. The connection idled for as long as the work took, and a database may be away for a
    while: hours of work do not fail for that."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return ingest(job, result)
        except (InterfaceError, OperationalError) as error:
            if time.monotonic() > deadline:
                raise
            connections.close_all()
            os.write(2, f"The database does not answer: {error}\n".encode(errors="replace"))
            time.sleep(2)
