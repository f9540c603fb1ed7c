from datetime import timedelta
from typing import Self

from django.db import models
from django.utils import timezone

FRESH = timedelta(seconds=20)


class WorkerQuerySet(models.QuerySet):
    def alive(self) -> Self:
        return self.filter(heartbeat_at__gte=timezone.now() - FRESH)


class Worker(models.Model):
    """A running `manage.py worker`. It exists only as long as its heartbeat is fresh."""

    host = models.CharField(max_length=200)
    pid = models.PositiveIntegerField()
    queue = models.CharField(max_length=20)
    slots = models.PositiveIntegerField()
    devices = models.JSONField(default=list)  # names of the GPUs that its jobs are given
    started_at = models.DateTimeField(default=timezone.now)
    heartbeat_at = models.DateTimeField(default=timezone.now)

    objects = WorkerQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["host", "pid"], name="worker_once_per_process")]

    def __str__(self) -> str:
        return f"{self.queue} worker {self.pid} on {self.host}"
