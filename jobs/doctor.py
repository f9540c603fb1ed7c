"""What `manage.py doctor` finds of the runner: database, Redis, workers, jobs, GPUs.

Findings are messages of Django's own system checks, under tags that no other command asks for: an Info is well, a
Warning deserves a look, an Error is a problem. What a hint says mends it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning, register
from django.db import DatabaseError
from django.utils import timezone

from jobs.devices import devices
from jobs.folders import strays
from jobs.ml.disk import size
from jobs.models import Job, State, Worker
from jobs.queues import Standing, standings
from jobs.reap import is_lost
from jobs.secrets import hidden

OFFLINE, ONLINE = "doctor", "doctor-online"
Look = Callable[[], Iterator[CheckMessage]]

IMPORT_SECONDS = 120.0
UNTAKEN = timedelta(minutes=2)  # a worker with a free slot takes a job within seconds
SKEW = timedelta(seconds=5)
NAMED = 8  # jobs, of many


def examines(area: str, tag: str = OFFLINE) -> Callable[[Look], Look]:
    """Register what looks at one area. What fails there is a finding, too, and ends no other look."""

    def decorate(look: Look) -> Look:
        def check(**_: Any) -> list[CheckMessage]:
            found = findings(look)
            for finding in found:
                finding.id = f"{tag}.{area}"
            return found

        register(check, tag, deploy=True)
        return look

    return decorate


def findings(look: Look) -> list[CheckMessage]:
    try:
        return list(look())
    except DatabaseError:
        return [Warning("Not looked at, because the database refuses.", hint="Mend the database first.")]
    except Exception as error:
        said = hidden(f"{type(error).__name__}: {error}")
        return [Error(f"Cannot be looked at: {said}.", hint="This is a fault of miStudio: please report it.")]


def counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(jobs: list[Job]) -> str:
    more = f" and {len(jobs) - NAMED} more" if len(jobs) > NAMED else ""
    return ", ".join(str(job.pk) for job in jobs[:NAMED]) + more


# ---- Redis, PyTorch


@examines("redis")
def redis() -> Iterator[CheckMessage]:
    if not settings.REDIS_URL:
        yield Info("Not used: one machine serves all pages.")
        return
    from redis import Redis, RedisError

    try:
        Redis.from_url(settings.REDIS_URL, socket_connect_timeout=3, socket_timeout=3).ping()
    except (RedisError, OSError, ValueError) as error:
        said = hidden(str(error))
        hint = "Start it, or correct REDIS_URL. Pages of other machines are up to two seconds late meanwhile."
        yield Warning(f"REDIS_URL is set, but Redis does not answer: {said}.", hint=hint)
    else:
        yield Info("Answers.")


@examines("torch")
def torch() -> Iterator[CheckMessage]:
    """In a process of its own: this one must not pay for it, and a broken driver can crash it."""
    command = [sys.executable, "-m", "jobs.ml.torch_facts"]
    try:
        done = subprocess.run(command, cwd=settings.ROOT, capture_output=True, text=True, timeout=IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        yield Error(f"PyTorch was not imported within {IMPORT_SECONDS:.0f} s.", hint="Is the disk, or the GPU, stuck?")
        return
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Error(f"PyTorch cannot be imported: {hidden(last)}.", hint="Install again: pip install --editable .")
        return
    yield from judge_torch(json.loads(done.stdout), devices())


def judge_torch(facts: dict[str, Any], seen: list[str]) -> Iterator[CheckMessage]:
    """facts: of jobs.ml.torch_facts; seen: the GPUs that the driver has."""
    version, gpus = facts["version"], facts["gpus"]
    if broken := [f"{gpu['name']} ({gpu['error']})" for gpu in gpus if gpu["error"]]:
        yield Error(
            f"PyTorch {version} cannot compute on {', '.join(broken)}.",
            hint="Install the build of PyTorch for this GPU and driver.",
        )
    elif seen and not gpus:
        built = f"built for CUDA {facts['cuda']}" if facts["cuda"] else "built without CUDA"
        hint = "Install a build with CUDA that the driver knows; jobs compute on the CPU meanwhile."
        yield Error(f"There are {len(seen)} GPUs, but PyTorch {version}, {built}, finds none.", hint=hint)
    elif gpus:
        yield Info(f"PyTorch {version} computes on {', '.join(gpu['name'] for gpu in gpus)}.")
    else:
        yield Info(f"PyTorch {version}; no GPU here, jobs compute on the CPU.")
    if 0 < len(gpus) < settings.GPU_SLOTS:
        said = f"MISTUDIO_GPU_SLOTS is {settings.GPU_SLOTS}, but there are {len(gpus)} GPUs: jobs share the first."
        yield Warning(said, hint=f"Set MISTUDIO_GPU_SLOTS to {len(gpus)}.")


# ---- workers and jobs


@examines("workers")
def workers() -> Iterator[CheckMessage]:
    for queue in standings():
        yield from of_queue(queue)
    for worker in Worker.objects.exclude(pk__in=Worker.objects.alive()):
        silent = (timezone.now() - worker.heartbeat_at).total_seconds()
        hint = "It was killed, or hangs, or the clock of its machine is slow."
        yield Warning(f"The {worker.queue} worker {named(worker)} is silent for {silent:.0f} s.", hint=hint)


def named(worker: Worker) -> str:
    return f"{worker.pid} on {worker.host.split('/')[0]}"


def of_queue(queue: Standing) -> Iterator[CheckMessage]:
    waiting = list(Job.objects.filter(state=State.QUEUED, queue=queue.name).order_by("queued_at").only("queued_at"))
    start = f"Start one: mistudio worker --queue {queue.name}, or mistudio studio for the site and all workers."
    if not queue.workers and waiting:
        said = f"{counted(len(waiting), 'job')} of queue {queue.name} ({listed(waiting)}) wait, and it has no worker."
        yield Error(said, hint=start)
    elif not queue.workers:
        yield Warning(f"Queue {queue.name} has no worker: nothing that is sent to it will start.", hint=start)
    else:
        in_use = f"{len(queue.running)} of {counted(queue.slots, 'slot')} in use"
        yield Info(f"Queue {queue.name}: {counted(len(queue.workers), 'worker')}, {in_use}.")
    if queue.pause:
        said = f"{queue.pause}; {counted(len(waiting), 'job')} waiting."
        yield Warning(said, hint=f"When it may go on: mistudio queue resume {queue.name}")
    elif waiting and queue.free and timezone.now() - waiting[0].queued_at > UNTAKEN:
        job = waiting[0]
        said = f"Job {job.pk} waits since {job.queued_at:%H:%M} UTC, though queue {queue.name} has a free slot."
        yield Error(said, hint=f"Restart its worker: {', '.join(map(named, queue.workers))}.")


@examines("jobs")
def jobs() -> Iterator[CheckMessage]:
    running = list(Job.objects.filter(state=State.RUNNING).order_by("pk"))
    lost = [job for job in running if is_lost(job, trust_heartbeats=True)]
    stalled = [job for job in running if job.stalled and job not in lost]
    if lost:
        said = f"{counted(len(lost), 'job')} ({listed(lost)}) lost the worker and nobody has seen to it."
        yield Error(said, hint="Queue again what can go on, and fail the rest: mistudio reap_jobs")
    if stalled:
        said = f"{counted(len(stalled), 'job')} ({listed(stalled)}) made no progress for minutes."
        yield Warning(said, hint=f"Read what it prints: mistudio jobs logs {stalled[0].pk}")
    if not lost and not stalled:
        yield Info(f"{counted(len(running), 'job')} running, none of them lost or stalled.")


@examines("clocks")
def clocks() -> Iterator[CheckMessage]:
    """A heartbeat is written by the clock of its worker: one from the future comes from a clock that is fast."""
    fast = Worker.objects.filter(heartbeat_at__gt=timezone.now() + SKEW)
    for worker in fast:
        ahead = (worker.heartbeat_at - timezone.now()).total_seconds()
        hint = "Set the clocks of all machines by NTP: who lives is told by them."
        yield Warning(f"The clock of the worker {named(worker)} is {ahead:.0f} s ahead of this one.", hint=hint)
    if not fast:
        yield Info("No heartbeat comes from the future.")


@examines("job-folders")
def job_folders() -> Iterator[CheckMessage]:
    there = set(Job.objects.values_list("pk", flat=True))
    found = strays(settings.MISTUDIO_DATA / "jobs", there)
    if found:
        said = f"{counted(len(found.folders), 'folder')} of jobs ({size(found.bytes)}) belong to no row."
        yield Warning(said, hint=f"Delete them if no other database uses this folder: {found.shown}")
    else:
        yield Info(f"{counted(len(there), 'job')}; no folder is left over.")
