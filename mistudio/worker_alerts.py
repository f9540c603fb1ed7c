"""Rules for alerts about workers, which the monitor itself knows nothing of."""

from datetime import datetime

from django.db.models import Max, Min, Q

from jobs.models import Job, QueuePause, State, Worker
from jobs.queue import QUEUES
from monitoring.rules import Rule


def silent_workers(now: datetime) -> dict[tuple[str, str], float]:
    """Who ends in an orderly way deletes its row."""
    return {
        (worker.host.partition("/")[0], f"worker {worker.pid} of queue {worker.queue}"): age(worker.heartbeat_at, now)
        for worker in Worker.objects.all()
    }


def waiting_without_worker(now: datetime) -> dict[tuple[str, str], float]:
    """Of each queue for how long jobs have waited while no worker was heard of, and no job that it ran; 0 while none
    waits, or the queue is paused. Who ends in an orderly way deletes its row, and may be back in a moment."""
    jobs = Job.objects.filter(state__in=State.unfinished()).exclude(queue__in=QueuePause.objects.values("queue"))
    since = Min("queued_at", filter=Q(state=State.QUEUED))
    rows = jobs.order_by().values_list("queue").annotate(waiting=since, worked=Max("heartbeat_at"))
    beats = dict(Worker.objects.order_by().values_list("queue").annotate(Max("heartbeat_at")))
    heard = {
        queue: max(filter(None, [waiting, worked, beats.get(queue)])) for queue, waiting, worked in rows if waiting
    }
    return {("", f"queue {queue}"): age(heard.get(queue, now), now) for queue in QUEUES}


def age(at: datetime, now: datetime) -> float:
    return max(0.0, (now - at).total_seconds())


RULES = (
    Rule("no-worker", "Jobs wait without a worker", "s", 60, 20, silence=waiting_without_worker),
    Rule("worker-silent", "No heartbeat", "s", 60, 20, silence=silent_workers),
)
