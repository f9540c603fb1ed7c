"""Hands jobs to workers. The only importer of django_q, whose messages say "look at this queue" and nothing else."""

import dataclasses
from collections.abc import Callable
from types import FrameType
from typing import Any

from django.conf import settings
from django.db import IntegrityError, connections, transaction
from django.utils import timezone
from django.utils.module_loading import import_string

from jobs.errors import InvalidInput
from jobs.kinds import load_kind, make_params
from jobs.live import publish_job
from jobs.models import Job, QueuePause, State, Worker

QUEUES = ("gpu", "cpu")


def submit(
    kind: str,
    params: dict[str, Any],
    *,
    team: Any,
    owner: Any,
    subject: str = "",
    title: str = "",
    retry_of: Job | None = None,
    shrinks: int = 0,
    priority: int = 0,
) -> Job:
    """The job that does this: the unfinished one of the same subject, else a new one. Raises InvalidInput."""
    module = load_kind(kind)
    valid = dataclasses.asdict(make_params(module, params))
    job = Job(
        kind=kind,
        params=valid,
        team=team,
        owner=owner,
        subject=subject,
        title=title[:200] or module.LABEL,
        queue=module.QUEUE,
        retry_of=retry_of,
        shrinks=shrinks,
        priority=priority,
    )
    if found := unfinished(kind, subject):
        return found
    try:
        with transaction.atomic():
            job.save()
            job.note("queued", state=State.QUEUED, **({"retry_of": retry_of.pk} if retry_of else {}))
            nudge(job.queue)
    except IntegrityError:
        # Submitted twice at the same moment: the constraint let one through.
        if found := unfinished(kind, subject):
            return found
        raise
    return job


def unfinished(kind: str, subject: str) -> Job | None:
    if not subject:
        return None
    return Job.objects.filter(kind=kind, subject=subject, state__in=State.unfinished()).first()


def nudge(queue: str) -> None:
    """Tell a worker that a free slot of this queue may take the next job, whichever that is by then. The message is a
    row of the same database: it becomes visible together with the change that sent it."""
    from django_q.tasks import async_task

    async_task("jobs.supervise.work", queue, cluster=queue, task_name=f"next of {queue}")


def wish(job: Job, what: str, **detail: Any) -> bool:
    """Stamp a wish on a running job; its supervisor sees it within a second."""
    name = f"{what}_requested_at"
    new = Job.objects.filter(pk=job.pk, state=State.RUNNING, **{name: None}).update(**{name: timezone.now()})
    job.refresh_from_db()
    if new:
        job.note(f"{what} requested", **detail)
    return job.state == State.RUNNING


def request_cancel(job: Job) -> bool:
    """End it: what waits at once; what runs is asked first and killed after a grace. False when it had finished."""
    while job.state in (State.QUEUED, State.PAUSED):
        if job.move(State.CANCELLED):
            return True
        job.refresh_from_db()  # a worker took it in this moment
    return job.state == State.RUNNING and wish(job, "cancel")


def request_pause(job: Job) -> bool:
    """Raises InvalidInput for a kind that cannot go on later."""
    if not job.ability("RESUMABLE"):
        raise InvalidInput(f"{job} cannot be paused.", hint="This kind of job would start over. Cancel it instead.")
    return wish(job, "pause")


def request_finish(job: Job) -> bool:
    """End early and keep what is done so far as the result. Raises InvalidInput for a kind that cannot."""
    if not job.ability("FINISH_EARLY"):
        raise InvalidInput(f"{job} cannot finish early.", hint="Its result would be incomplete. Cancel it instead.")
    return wish(job, "finish")


def resume(job: Job) -> bool:
    with transaction.atomic():
        if job.state != State.PAUSED or not job.move(State.QUEUED, "resumed"):
            return False
        nudge(job.queue)
    return True


def pause_queue(queue: str, *, by: Any = None, reason: str = "", now: bool = False) -> bool:
    """Nothing of the queue starts any more; what runs goes on to its end, or with `now` pauses if it can go on later.
    False when it was paused before: who did that, and why, stays."""
    known = {"by": by, "reason": " ".join(reason.replace("\0", "").split())[:200]}
    with transaction.atomic():
        _, new = QueuePause.objects.get_or_create(queue=queue, defaults=known)
        publish_job(*Job.objects.filter(queue=queue, state__in=State.unfinished()))
    if now:
        for job in Job.objects.filter(queue=queue, state=State.RUNNING):
            if job.can_pause:
                wish(job, "pause", queue=queue)
    return new


def resume_queue(queue: str) -> bool:
    """What waits may start again, and what was paused with the queue goes on. False when it was not paused."""
    with transaction.atomic():
        pause = QueuePause.objects.filter(queue=queue).first()
        if pause is None:
            return False
        unfinished = Job.objects.filter(queue=queue, state__in=State.unfinished())
        for job in unfinished.filter(state=State.PAUSED, events__at__gte=pause.at, events__detail__queue=queue):
            resume(job)
        pause.delete()
        for _ in range(missing(queue, unfinished.filter(state=State.QUEUED).count())):
            nudge(queue)
        publish_job(*unfinished)
    return True


def retry(job: Job, overrides: dict[str, Any] | None = None) -> Job:
    """A new job with the same parameters but for `overrides`. Raises InvalidInput."""
    if job.unfinished:
        raise InvalidInput(f"{job} is not finished.", hint="Wait for it, or cancel it first.")
    if job.subject and settings.SUBJECT_URL and not import_string(settings.SUBJECT_URL)(job.subject):
        raise InvalidInput("What this job worked on was deleted.", hint="Make it anew.")
    return submit(
        job.kind,
        {**job.params, **(overrides or {})},
        team=job.team,
        owner=job.owner,
        subject=job.subject,
        title=job.title,
        retry_of=job,
        priority=job.priority,
    )


def worker_alive(queue: str = "") -> bool:
    workers = Worker.objects.alive()
    return (workers.filter(queue=queue) if queue else workers).exists()


def nudges(queue: str) -> int:
    """How many messages for this queue no cluster has taken yet."""
    from django_q.models import OrmQ

    return sum(is_nudge(message) for message in OrmQ.objects.filter(key=queue, lock__lte=timezone.now()))


def is_nudge(message: Any) -> bool:
    """Not one that cannot be read any more: it was signed with another secret key."""
    return message.task.get("args") == (message.key,)


def missing(queue: str, waiting: int) -> int:
    """How many messages there should be more: one for each job that waits."""
    return max(0, waiting - nudges(queue))


def drop_old_messages(queue: str) -> None:
    """Those that nobody will act on. A cluster that was killed leaves those it had taken."""
    from django_q.models import OrmQ

    now = timezone.now()
    for message in OrmQ.objects.filter(key=queue):
        if message.lock > now or not is_nudge(message):
            message.delete()


def start_cluster(on_signal: Callable[[int], None]) -> Any:
    """django-q2's processes for the queue named by Q_CLUSTER_NAME. Raises RuntimeError when they do not start."""
    from django_q.cluster import Cluster

    class Quiet(Cluster):
        def sig_handler(self, signum: int, frame: FrameType | None) -> None:
            on_signal(signum)  # its own handler would wait for running jobs, for hours

    connections.close_all()  # a connection must not be in two processes
    cluster = Quiet()
    cluster.start()
    return cluster
