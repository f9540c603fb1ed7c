"""Rules for alerts about workers, which the monitor itself knows nothing of."""

from datetime import datetime

from django.db.models import Max, Min

from jobs.models import Job, State, Worker
from jobs.queue import QUEUES
from monitoring.rules import Rule


def silent_workers(now: datetime) -> dict[tuple[str, str], float]:
    """Who ends in an orderly way deletes its row."""
    return {
        (worker.host.partition("/")[0], f"worker {worker.pid} of queue {worker.queue}"): age(worker.heartbeat_at, now)
        for worker in Worker.objects.all()
    }


def waiting_without_worker(now: datetime) -> dict[tuple[str, str], float]:
    """Of each queue for how long jobs have waited while no worker was heard of; 0 while none waits."""
    jobs = Job.objects.filter(state=State.QUEUED).order_by()
    waiting = dict(jobs.values_list("queue").annotate(Min("queued_at")))
    beats = dict(Worker.objects.order_by().values_list("queue").annotate(Max("heartbeat_at")))
    return {
        ("", f"queue {queue}"): age(max(since, beats.get(queue, since)), now)
        for queue in QUEUES
        for since in [waiting.get(queue, now)]
    }


def age(at: datetime, now: datetime) -> float:
    return max(0.0, (now - at).total_seconds())


RULES = (
    Rule("no-worker", "Jobs wait without a worker", "s", 60, 20, silence=waiting_without_worker),
    Rule("worker-silent", "No heartbeat", "s", 60, 20, silence=silent_workers),
)
