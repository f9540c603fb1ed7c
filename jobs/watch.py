"""Sees a job through for a command: follows the worker that runs it, or runs it here when there is none."""

import time
from collections.abc import Callable

from jobs.models import Job, State
from jobs.queue import worker_alive
from jobs.reap import forget, reap, resend
from jobs.supervise import run_here

LOOK = 0.3  # seconds
ROUND = 5.0

OnLook = Callable[[Job], None]


def follow(job: Job, on_look: OnLook | None = None) -> Job:
    """Until it is finished or paused, or waits while no worker is there to take it."""
    rounded = time.monotonic()
    while True:
        job.refresh_from_db()
        if on_look:
            on_look(job)
        if job.state in (*State.finished(), State.PAUSED):
            return job
        if not worker_alive(job.queue):
            if job.state == State.QUEUED:
                return job
            if time.monotonic() - rounded > ROUND:  # its worker is gone, and no other looks after it
                rounded = time.monotonic()
                reap()
        time.sleep(LOOK)


def see_through(job: Job, on_look: OnLook | None = None) -> Job:
    """Returns the job that ended: another one if it was retried with less memory. KeyboardInterrupt leaves it to its
    worker; what runs here is paused, or cancelled if it cannot go on later."""
    while True:
        if not worker_alive(job.queue):
            resend()  # for a worker that may come meanwhile
            job = run_here(job, on_look)
            if on_look:
                on_look(job)
        if job.unfinished and job.state != State.PAUSED:
            job = follow(job, on_look)
        elif (again := successor(job)) is not None:
            job = again
        else:
            forget()
            return job


def successor(job: Job) -> Job | None:
    """The automatic retry with less memory."""
    if job.state != State.FAILED:
        return None
    return job.retries.filter(shrinks=job.shrinks + 1).order_by("pk").last()
