"""A real `manage.py worker` with its django-q2 processes beside the test."""

import os
import signal
import time
from datetime import timedelta

import psutil
import pytest
from django.db import DatabaseError
from django.utils import timezone
from django_q.models import OrmQ

from jobs import work
from jobs.models import Job, Worker
from jobs.queue import pause_queue, request_cancel, resume_queue, worker_alive
from jobs.work import WorkerProcess
from tests.jobs.conftest import in_state, until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def cpu_worker(beside):
    def start(**env):
        process = beside("worker", "--queue", "cpu", env={"MISTUDIO_CPU_SLOTS": "1", **env})
        until(lambda: worker_alive("cpu"))
        return process

    return start


def family(pid):
    return psutil.Process(pid).children(recursive=True)


def q2_worker(pid):
    """The django-q2 process that takes jobs: the sentinel's first child."""
    sentinel = psutil.Process(pid).children()[0]
    return min(sentinel.children(), key=lambda process: process.pid)


def test_a_worker_runs_its_queue_survives_its_cluster_and_leaves_nothing_when_it_is_told_to_stop(cpu_worker, sleepy):
    other = sleepy(steps=1)
    Job.objects.filter(pk=other.pk).update(queue="gpu")
    OrmQ.objects.update(key="gpu")
    worker = cpu_worker()
    until(in_state(sleepy(steps=3), "succeeded"))
    sentinel = psutil.Process(worker.pid).children()[0]
    below = sentinel.children(recursive=True)
    sentinel.kill()
    until(lambda: not [process for process in below if process.is_running()])
    long = sleepy(steps=100_000, seconds=0.02)
    until(lambda: Job.objects.get(pk=long.pk).done > 2)
    assert "start anew: its sentinel died" in worker.text()
    everybody = family(worker.pid)
    assert len(everybody) >= 5
    start = time.monotonic()
    assert worker.stop(signal.SIGTERM) == 0
    assert time.monotonic() - start < 8
    assert not [process for process in everybody if process.is_running()]
    long.refresh_from_db()
    assert (long.state, long.losses) == ("queued", 0) and not Worker.objects.exists()
    assert [event.what for event in long.events.all()][-1] == "worker stopped"
    assert in_state(other, "queued")(), "it is for the worker of another queue"


@pytest.mark.slow
def test_a_killed_worker_takes_everything_with_it_and_the_next_goes_on(cpu_worker, sleepy):
    worker = cpu_worker()
    job = sleepy(steps=80, seconds=0.02)
    until(lambda: Job.objects.get(pk=job.pk).done > 10)
    everybody = family(worker.pid)
    worker.stop(signal.SIGKILL)
    until(lambda: not [process for process in everybody if process.is_running()])
    Worker.objects.all().delete()
    cpu_worker()
    until(in_state(job, "succeeded"))
    assert job.result == {"steps": 80, "total": sum(range(80))} and job.attempt == 2


@pytest.mark.slow
def test_an_idle_q2_worker_that_is_killed_does_not_hang_the_queue_for_long(cpu_worker, sleepy):
    """It dies with the lock of the queue: its replacement waits for ever, and everything looks alive."""
    worker = cpu_worker()
    until(in_state(sleepy(steps=1), "succeeded"))
    time.sleep(1)
    q2_worker(worker.pid).kill()
    until(in_state(sleepy(steps=1), "succeeded"))
    assert "queued jobs were not picked up" in worker.text()


# ---- the parts of its round, without processes


@pytest.fixture
def worker():
    return WorkerProcess("cpu")


def test_a_round_keeps_the_worker_known_and_finds_lost_messages(worker, sleepy):
    job = sleepy()
    OrmQ.objects.all().delete()
    Job.objects.filter(pk=job.pk).update(queued_at=timezone.now() - timedelta(minutes=1))
    worker.round()
    assert Worker.objects.get().pid == os.getpid() and worker_alive("cpu")
    assert OrmQ.objects.count() == 1


def test_heartbeats_are_not_trusted_after_a_sleep_or_an_absence_of_the_database(worker, monkeypatch):
    seen = []
    monkeypatch.setattr(work, "reap", lambda trust_heartbeats: seen.append(trust_heartbeats))
    long_awake = time.monotonic() - 1000
    worker.awake_since = long_awake
    worker.rounded = time.monotonic() - 5
    worker.round()
    worker.rounded = time.monotonic() - 3600
    worker.round()
    assert seen == [True, False]
    worker.awake_since = long_awake

    def away():
        raise DatabaseError("gone")

    worker.guarded(away)
    worker.round()
    assert seen[-1] is False


def test_a_queue_hangs_when_a_free_slot_takes_nothing_for_long(worker, row, monkeypatch):
    job = row("queued")
    assert not worker.hangs(), "it was queued just now"
    Job.objects.filter(pk=job.pk).update(queued_at=timezone.now() - timedelta(minutes=1))
    assert not worker.hangs(), "seen for the first time"
    worker.stuck_since -= 60
    assert worker.hangs()
    pause_queue("cpu")
    assert not worker.hangs(), "nothing is to start"
    resume_queue("cpu")
    monkeypatch.setattr(worker, "slots", 0)
    assert not worker.hangs() and worker.stuck_since is None, "without a free slot waiting is right"


def test_a_hanging_queue_waits_for_a_job_that_would_lose_its_work(worker, row, monkeypatch):
    from jobs.kinds import sleepy

    restarts = []
    monkeypatch.setattr(worker, "restart_cluster", restarts.append)
    monkeypatch.setattr(worker, "running", lambda: Job.objects.filter(state="running"))
    job = row("running")
    monkeypatch.setattr(sleepy, "RESUMABLE", False)
    worker.free_cluster()
    assert restarts == []
    request_cancel(job)
    Job.objects.update(state="cancelled")
    worker.free_cluster()
    assert restarts == ["queued jobs were not picked up"]


def test_a_cluster_that_does_not_start_is_tried_again_more_and_more_slowly(worker, monkeypatch):
    def fail(on_signal):
        raise RuntimeError("sentinel exited with code 1")

    monkeypatch.setattr(work, "start_cluster", fail)
    for _ in range(3):
        worker.start_cluster()
    assert worker.failures == 3 and worker.cluster is None
    slept = []
    monkeypatch.setattr(work.time, "sleep", lambda seconds: slept.append(seconds) or worker.signals.append(15))
    worker.restart_cluster("its sentinel died")
    assert slept == [work.TICK] and worker.failures == 3, "told to stop while it waits, it starts nothing"
