"""How the queues stand: which workers and devices there are, what runs on them, how many jobs wait, who paused them."""

from dataclasses import dataclass
from typing import Any

from django.db.models import Count

from jobs.live import once
from jobs.models import Job, QueuePause, State, Worker
from jobs.queue import QUEUES


@dataclass(frozen=True)
class Place:
    """A GPU, or a slot of a worker, and the jobs on it: several share a GPU when there are more slots than GPUs."""

    name: str
    host: str
    jobs: list[Job]


@dataclass(frozen=True)
class Standing:
    name: str
    workers: list[Worker]  # alive
    running: list[Job]  # of all teams, by their start
    waiting: int  # of all teams
    pause: QueuePause | None

    @property
    def slots(self) -> int:
        return sum(worker.slots for worker in self.workers)

    @property
    def free(self) -> int:
        return max(0, self.slots - len(self.running))

    @property
    def has_devices(self) -> bool:
        return any(worker.devices for worker in self.workers)

    def places(self) -> list[Place]:
        hosts = dict.fromkeys(worker.host for worker in self.workers)
        return [place for host in sorted(hosts) for place in self.places_of(host)]

    def places_of(self, host: str) -> list[Place]:
        """Jobs that were not given a GPU yet are on none."""
        workers = [worker for worker in self.workers if worker.host == host]
        jobs = [job for job in self.running if job.host == host]
        short = host.split("/")[0]
        if names := list(dict.fromkeys(name for worker in workers for name in worker.devices)):
            return [Place(f"GPU {name[:12]}", short, [job for job in jobs if name in job.devices]) for name in names]
        n = max(sum(worker.slots for worker in workers), len(jobs))
        return [Place(f"{self.name.upper()} slot {i + 1}", short, jobs[i : i + 1]) for i in range(n)]


@once
def standings() -> list[Standing]:
    """Four queries, however much there is."""
    workers = list(Worker.objects.alive().order_by("host", "pk"))
    columns = ("pk", "team_id", "kind", "title", "queue", "host", "devices", "percent", "state", "started_at")
    running = list(Job.objects.filter(state=State.RUNNING).only(*columns).order_by("started_at", "pk"))
    waiting: Any = Job.objects.filter(state=State.QUEUED).order_by().values_list("queue")
    counts = dict(waiting.annotate(n=Count("pk")))
    pauses = {pause.queue: pause for pause in QueuePause.objects.select_related("by")}
    return [
        Standing(
            name,
            [worker for worker in workers if worker.queue == name],
            [job for job in running if job.queue == name],
            counts.get(name, 0),
            pauses.get(name),
        )
        for name in QUEUES
    ]
