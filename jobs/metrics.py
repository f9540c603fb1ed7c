"""Figures of this installation in Prometheus' text format 0.0.4. Read from the rows when they are asked for, but for
those of this web process. Labels hold nothing that a user typed."""

import shutil
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
from django.conf import settings
from django.db import DatabaseError
from django.db.models import Count, Max, Min, Q, Sum
from django.utils import timezone

from jobs import tail
from jobs.models import Job, State, Worker
from jobs.queue import QUEUES

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Family:
    name: str
    type: str  # gauge or counter
    help: str
    samples: list[tuple[dict[str, str], float]]  # labels, value


def one(name: str, type: str, help: str, value: float) -> Family:
    return Family(name, type, help, [({}, value)])


def exposition(found: Iterable[Family]) -> str:
    lines = []
    for family in found:
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.type}"]
        lines += [f"{family.name}{braced(labels)} {value}" for labels, value in family.samples]
    return "\n".join(lines) + "\n"


def braced(labels: dict[str, str]) -> str:
    said = ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())
    return f"{{{said}}}" if said else ""


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def families() -> Iterator[Family]:
    """All of them. Four queries, however much there is; without a database those of this process alone."""
    try:
        rows = [*of_jobs(), *of_last_jobs(), *of_workers(), *of_pages()]
    except DatabaseError:
        rows = []
    yield one("mistudio_database_up", "gauge", "Whether the database answers.", int(bool(rows)))
    yield from rows
    yield from of_disk()
    yield from of_responses()
    yield from of_process()


# ---- of the rows


def of_jobs() -> Iterator[Family]:
    rows: Any = Job.objects.order_by().values("kind", "queue", "state")
    groups = list(
        rows.annotate(n=Count("pk"), oldest=Min("queued_at"), tokens=Sum("rate", filter=Q(unit="tokens"), default=0.0))
    )
    counts = [({name: row[name] for name in ("kind", "queue", "state")}, row["n"]) for row in groups]
    yield Family("mistudio_jobs", "gauge", "Jobs by kind, queue and state.", counts)
    now = timezone.now()
    waiting = {name: [row["oldest"] for row in groups if waits(row, name)] for name in QUEUES}
    yield Family(
        "mistudio_queue_oldest_waiting_seconds",
        "gauge",
        "How long the oldest queued job has waited; 0 when none waits.",
        [
            ({"queue": name}, max(0.0, (now - min(since, default=now)).total_seconds()))
            for name, since in waiting.items()
        ],
    )
    running = [row for row in groups if row["state"] == State.RUNNING]
    yield Family(
        "mistudio_tokens_per_second",
        "gauge",
        "Of all running jobs of a kind, over the last half minute; 0 for those that count something else.",
        [({"kind": row["kind"], "queue": row["queue"]}, row["tokens"]) for row in running],
    )


def waits(row: dict[str, Any], queue: str) -> bool:
    return row["state"] == State.QUEUED and row["queue"] == queue


def of_last_jobs() -> Iterator[Family]:
    succeeded = Job.objects.filter(state=State.SUCCEEDED).order_by()
    last = succeeded.values("kind").annotate(last=Max("pk")).values("last")
    rows = Job.objects.filter(pk__in=last).order_by("kind").only("kind", "state", "started_at", "finished_at")
    yield Family(
        "mistudio_job_last_duration_seconds",
        "gauge",
        "Of the last attempt of the newest job of each kind that succeeded.",
        [({"kind": job.kind}, job.seconds or 0.0) for job in rows],
    )


def of_workers() -> Iterator[Family]:
    rows: Any = Worker.objects.alive().values_list("queue")
    found = {queue: (n, slots) for queue, n, slots in rows.annotate(n=Count("pk"), slots=Sum("slots"))}
    alive = {name: found.get(name, (0, 0)) for name in QUEUES}
    workers = [({"queue": name}, n) for name, (n, _) in alive.items()]
    slots = [({"queue": name}, n) for name, (_, n) in alive.items()]
    yield Family("mistudio_workers", "gauge", "Workers with a fresh heartbeat.", workers)
    yield Family("mistudio_worker_slots", "gauge", "Jobs that these workers run at a time.", slots)


def of_pages() -> Iterator[Family]:
    yield one("mistudio_live_pages", "gauge", "Open pages that this process keeps up to date.", tail.pages_here())
    yield one(
        "mistudio_live_lag_seconds",
        "gauge",
        "Age of the oldest live event that this process has not read yet; 0 when there is none.",
        tail.lag_here(),
    )


# ---- of this machine and this process


def of_disk() -> Iterator[Family]:
    try:
        disk = shutil.disk_usage(settings.MISTUDIO_DATA)
    except OSError:
        return
    yield one("mistudio_data_disk_free_bytes", "gauge", "Of the disk that holds MISTUDIO_DATA.", disk.free)
    yield one("mistudio_data_disk_size_bytes", "gauge", "Of the disk that holds MISTUDIO_DATA.", disk.total)


counting = threading.Lock()
responses: Counter[int] = Counter()
seconds: defaultdict[int, float] = defaultdict(float)


def count_response(status: int, took: float) -> None:
    with counting:
        responses[status] += 1
        seconds[status] += took


def of_responses() -> Iterator[Family]:
    with counting:
        counted = [({"status": str(status)}, n, seconds[status]) for status, n in sorted(responses.items())]
    counts: list[Any] = [(labels, n) for labels, n, _ in counted]
    times: list[Any] = [(labels, took) for labels, _, took in counted]
    yield Family("mistudio_http_responses_total", "counter", "Answers of this process, without probes.", counts)
    yield Family("mistudio_http_response_seconds_total", "counter", "Time until these answers began.", times)


def of_process() -> Iterator[Family]:
    process = psutil.Process()
    with process.oneshot():
        cpu, memory = process.cpu_times(), process.memory_info()
        yield one("process_cpu_seconds_total", "counter", "Of this web process.", cpu.user + cpu.system)
        yield one("process_resident_memory_bytes", "gauge", "Of this web process.", memory.rss)
        yield one("process_open_fds", "gauge", "Of this web process.", process.num_fds())
        yield one("process_start_time_seconds", "gauge", "Since 1970.", process.create_time())
