"""Starts the tasks of upkeep: when their time has come, or when somebody asks."""

from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Max, QuerySet
from django.utils import timezone

from jobs.models import Job, Schedule
from jobs.queue import submit
from jobs.upkeep.task import find

KIND = "upkeep"


def make_schedules(**_: Any) -> None:
    """After a migration: those of new tasks. What people changed stays."""
    known = set(Schedule.objects.values_list("task", flat=True))
    for name in settings.UPKEEP:
        if name not in known:
            task = find(name)
            Schedule.objects.create(task=name, every=task.every, at=task.at, weekday=task.weekday)


def schedules() -> QuerySet[Schedule]:
    """Of the tasks that there are."""
    return Schedule.objects.filter(task__in=settings.UPKEEP)


def start(name: str, *, dry_run: bool = False, owner: Any = None) -> Job:
    """The job that does it, the unfinished one if there is one. Raises InvalidInput for a task that does not exist."""
    task = find(name)
    return submit(
        KIND,
        {"task": name, "dry_run": dry_run},
        team=None,
        owner=owner,
        subject=subject_of(name, dry_run),
        title=f"{task.label}, dry run" if dry_run else task.label,
    )


def subject_of(name: str, dry_run: bool) -> str:
    return f"{KIND}:{name}{'.dry' if dry_run else ''}"


def start_due() -> list[Job]:
    """Of several workers that find the same one due, the one that moves its time on starts it."""
    now, started = timezone.now(), []
    for schedule in schedules().filter(enabled=True, next_at__lte=now):
        mine = Schedule.objects.filter(pk=schedule.pk, enabled=True, next_at=schedule.next_at)
        with transaction.atomic():
            if mine.update(next_at=schedule.following(now)):
                started.append(start(schedule.task))
    return started


def runs(name: str) -> QuerySet[Job]:
    """Of one task, dry ones too, the newest first."""
    return Job.objects.filter(kind=KIND, subject__in=[subject_of(name, dry_run) for dry_run in (False, True)])


def newest() -> dict[str, Job]:
    """Subject → the newest job of it."""
    rows = Job.objects.filter(kind=KIND).exclude(subject="").order_by()
    last = rows.values("subject").annotate(last=Max("pk")).values_list("last", flat=True)
    return {job.subject: job for job in Job.objects.filter(pk__in=list(last)).select_related("owner")}
