"""What every worker does each few seconds, told in a report, and there for a site whose workers are gone."""

from collections.abc import Iterator
from datetime import time
from functools import partial

from jobs.context import Context
from jobs.models import Job, State
from jobs.queue import nudge
from jobs.reap import bury, is_lost, unsent
from jobs.upkeep.task import Needless, Step, Task


def steps(ctx: Context) -> Iterator[Step]:
    for job in Job.objects.filter(state=State.RUNNING):
        if is_lost(job, trust_heartbeats=True):
            yield Step(f"job {job.pk} ({job}): its worker is lost", "job settled", partial(settle, job))
    for queue, n in unsent().items():
        for _ in range(n):
            yield Step(
                f"queue {queue}: the message of a job that waits is lost", "message sent again", partial(send, queue)
            )


def settle(job: Job) -> str:
    job.refresh_from_db()
    if job.state != State.RUNNING or not is_lost(job, trust_heartbeats=True) or not bury(job):
        raise Needless("somebody looks after it again")
    return ""


def send(queue: str) -> str:
    nudge(queue)
    return ""


task = Task(
    "Lost jobs",
    "Queues again, or fails, the jobs whose worker is lost, and sends lost messages again. Workers do so themselves "
    "every few seconds.",
    time(0, 20),
    steps,
    every="hourly",
)
