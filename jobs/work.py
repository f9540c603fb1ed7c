"""`manage.py worker`: runs the django-q2 processes of one queue, and looks after them and after lost jobs.

One thread does it all: a process that forks must not have threads that hold locks."""

import logging
import os
import time
from datetime import timedelta
from typing import Any

import psutil
from django.conf import settings
from django.db import DatabaseError, connections
from django.utils import timezone

from jobs import processes, supervise
from jobs.devices import devices
from jobs.models import Job, QueuePause, State, Worker
from jobs.queue import drop_old_messages, start_cluster
from jobs.reap import forget, reap, resend
from jobs.upkeep.schedules import start_due

TICK, ROUND, PRUNE = 0.2, 5.0, 60.0  # seconds
PICK_UP = 10.0  # a queued job with a free slot should start within this
STUCK = 15.0  # and when it has not for so long after that, the cluster hangs

log = logging.getLogger(__name__)


def slots_of(queue: str) -> int:
    return {"gpu": settings.GPU_SLOTS, "cpu": settings.CPU_SLOTS}[queue]


class WorkerProcess:
    def __init__(self, queue: str) -> None:
        self.queue, self.slots = queue, slots_of(queue)
        self.signals: list[int] = []
        self.cluster: Any = None
        self.failures = 0
        self.stuck_since: float | None = None
        self.awake_since = self.rounded = time.monotonic()
        self.pruned = 0.0

    def serve(self) -> None:
        processes.tie_forks()
        self.start_cluster()
        self.guarded(self.first_round)
        while not self.signals:
            if not self.cluster or not self.cluster.sentinel.is_alive():
                self.restart_cluster("its sentinel died")
            if time.monotonic() - self.rounded >= ROUND:
                self.guarded(self.round)
            time.sleep(TICK)
        self.stop()

    def first_round(self) -> None:
        drop_old_messages(self.queue)
        self.round()

    def round(self) -> None:
        now = time.monotonic()
        if now - self.rounded > 4 * ROUND:  # the machine slept: everybody's heartbeat is old
            self.awake_since = now
        self.rounded = now
        self.beat()
        settled = now - self.awake_since > supervise.STALE
        reap(trust_heartbeats=settled)
        resend()
        if settled:
            start_due()
        if self.hangs():
            self.free_cluster()
        if now - self.pruned > PRUNE:
            self.pruned = now
            forget()

    def guarded(self, step: Any) -> None:
        """A database that does not answer ends no worker; but then nobody could write heartbeats either."""
        try:
            step()
        except DatabaseError as error:
            log.warning("The database does not answer: %s", error)
            self.rounded = self.awake_since = time.monotonic()
            connections.close_all()

    def beat(self) -> None:
        Worker.objects.update_or_create(
            host=processes.this_host(),
            pid=os.getpid(),
            defaults={
                "queue": self.queue,
                "slots": self.slots,
                "devices": devices() if self.queue == "gpu" else [],
                "heartbeat_at": timezone.now(),
            },
        )

    def start_cluster(self) -> None:
        supervise.STOPPING.set(False)
        try:
            self.cluster = start_cluster(self.signals.append)
            self.failures = 0
        except RuntimeError as error:
            self.failures += 1
            log.error("%s", error)

    def restart_cluster(self, why: str) -> None:
        log.warning("The processes of queue %s start anew: %s.", self.queue, why)
        self.end_cluster(time.monotonic())
        deadline = time.monotonic() + min(30, self.failures * 2)
        while time.monotonic() < deadline and not self.signals:
            time.sleep(TICK)
        if not self.signals:
            self.start_cluster()

    def hangs(self) -> bool:
        """A killed idle q2 worker leaves the queue's lock taken: everything looks alive, and nothing starts."""
        late = timezone.now() - timedelta(seconds=PICK_UP)
        waiting = Job.objects.filter(state=State.QUEUED, queue=self.queue, queued_at__lt=late)
        paused = QueuePause.objects.filter(queue=self.queue).exists()
        if paused or not waiting.exists() or self.running().count() >= self.slots:
            self.stuck_since = None
            return False
        self.stuck_since = self.stuck_since or time.monotonic()
        return time.monotonic() - self.stuck_since > STUCK

    def running(self) -> Any:
        """The jobs that our own processes supervise."""
        ours = [child.pid for child in psutil.Process().children(recursive=True)]
        return Job.objects.filter(state=State.RUNNING, host=processes.this_host(), supervisor_pid__in=ours)

    def free_cluster(self) -> None:
        """Start it anew, unless that would cost a running job its work: jobs that resume go back to the queue."""
        if all(job.ability("RESUMABLE") for job in self.running()):
            supervise.STOPPING.set()
            supervise.wait_for(lambda: not self.running().exists(), settings.STOP_GRACE_SECONDS + 5)
            self.stuck_since = None
            self.restart_cluster("queued jobs were not picked up")

    def stop(self) -> None:
        """Running jobs save their checkpoints and go back to the queue. A second signal does not wait for them."""
        supervise.STOPPING.set()
        if self.cluster and self.cluster.sentinel.is_alive():
            self.cluster.stop_event.set()
        self.end_cluster(time.monotonic() + settings.STOP_GRACE_SECONDS + 5)
        self.guarded(Worker.objects.filter(host=processes.this_host(), pid=os.getpid()).delete)

    def end_cluster(self, deadline: float) -> None:
        if not self.cluster:
            return
        sentinel = self.cluster.sentinel
        while sentinel.is_alive() and time.monotonic() < deadline and len(self.signals) < 2:
            time.sleep(TICK)
        sentinel.kill()  # and with it, tied to it, all that it started
        sentinel.join(5)
        self.cluster = None
