"""Finds what nobody looks after any more: jobs whose worker is lost, queued jobs whose message is lost, old events.

Safe to run anywhere, at any time and several times at once: every change is a conditional move."""

import logging
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import DatabaseError
from django.db.models import Count
from django.utils import timezone
from django.utils.module_loading import import_string

from jobs import processes
from jobs.endings import Ending, judge, settle
from jobs.models import Job, LiveEvent, QueuePause, State, Worker
from jobs.outcome import read_outcome
from jobs.queue import missing, nudge
from jobs.supervise import STALE

SILENT = timedelta(seconds=5)  # a message needs a moment to arrive
EVENTS_KEPT = timedelta(minutes=10)

log = logging.getLogger(__name__)


def reap(trust_heartbeats: bool = True) -> list[tuple[Job, Ending]]:
    """Settle every running job that lost its worker. `trust_heartbeats`: False right after this machine or its database
    slept, when every heartbeat looks old."""
    found = []
    for job in Job.objects.filter(state=State.RUNNING):
        try:
            ending = bury(job) if is_lost(job, trust_heartbeats) else None
        except DatabaseError:
            raise
        except Exception:  # one job that cannot be read must not stop the care for all others
            log.exception("Job %s cannot be reaped", job.pk)
            continue
        if ending:
            log.warning("Job %s (%s): %s, now %s", job.pk, job, ending.why, ending.to)
            found.append((job, ending))
    return found


def is_lost(job: Job, trust_heartbeats: bool) -> bool:
    beat = job.heartbeat_at or job.started_at or job.queued_at
    silence = (timezone.now() - beat).total_seconds()
    if job.host != processes.this_host():
        return trust_heartbeats and silence > STALE  # its pids mean nothing here
    if processes.alive(job.supervisor_pid, job.supervisor_start):
        return trust_heartbeats and silence > STALE
    # Its supervisor is gone. The process itself was told to stop then: it may still be writing its checkpoint.
    return not processes.alive(job.pid, job.pid_start) or silence > settings.STOP_GRACE_SECONDS + 5


def bury(job: Job) -> Ending | None:
    """Make sure that it is dead, then move it on. None when somebody else did."""
    kill_remains(job)
    told = "cancel" if job.cancel_requested_at else ""
    ending = judge(job, read_outcome(job), told=told)
    return ending if settle(job, ending) else None


def kill_remains(job: Job) -> None:
    """Kill the job's process if it is still that process, on this host. Never a stranger with the same number."""
    if job.host != processes.this_host() or not processes.alive(job.pid, job.pid_start):
        return
    assert job.pid is not None  # alive() said so
    line = processes.command_line(job.pid)
    if "run_job" in line and line[line.index("run_job") + 1 :][:1] == [str(job.pk)]:
        processes.kill_group(job.pid)


def resend() -> dict[str, int]:
    """Send the messages that are missing. One too many does no harm."""
    sent = unsent()
    for queue, n in sent.items():
        for _ in range(n):
            nudge(queue)
    return sent


def unsent() -> dict[str, int]:
    """Queue → how many messages are missing for what waits. A queue that is paused gets them when it is resumed."""
    waiting = Job.objects.filter(state=State.QUEUED, queued_at__lte=timezone.now() - SILENT).order_by()
    counts: Any = waiting.exclude(queue__in=QueuePause.objects.values("queue")).values_list("queue")
    found = {queue: missing(queue, n) for queue, n in counts.annotate(n=Count("pk"))}
    return {queue: n for queue, n in found.items() if n}


def forget() -> None:
    """Events that every page has seen, workers that ended without a word, and what the domain sweeps away."""
    now = timezone.now()
    LiveEvent.objects.filter(at__lt=now - EVENTS_KEPT).delete()
    Worker.objects.filter(heartbeat_at__lt=now - EVENTS_KEPT).delete()
    for path in settings.SWEEPS:
        import_string(path)()
