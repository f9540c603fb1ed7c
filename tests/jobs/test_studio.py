"""`manage.py studio` beside the test: the site, both workers, and their end."""

import json
import os
import signal
import socket
import time
import urllib.request

import psutil
import pytest

from jobs import studio as rooms
from jobs.models import Job, Worker
from jobs.studio import (
    CannotStart,
    KeptWorker,
    Studio,
    address_of,
    answers,
    listen,
    lock_data,
    lock_path,
    running_studio,
)
from tests.conftest import free_port, manage
from tests.jobs.conftest import in_state, until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def studio(beside):
    def start(*arguments):
        process = beside("studio", "--port", str(free_port()), *arguments)
        process.url = until(lambda: address_of(process.pid))
        return process

    return start


def alive(processes):
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_one_command_serves_works_replaces_a_dead_worker_and_ends_with_everything(studio, sleepy):
    process = studio()
    assert answers(f"{process.url}login/")
    job = sleepy(steps=2)
    until(in_state(job, "succeeded"))
    until(lambda: Worker.objects.count() == 2)
    victim = next(child for child in psutil.Process(process.pid).children() if "cpu" in child.cmdline())
    victim.kill()
    until(in_state(sleepy(steps=1), "succeeded"))
    everybody = psutil.Process(process.pid).children(recursive=True)
    again = manage("studio")
    assert again.returncode == 1 and process.url in again.stderr and f"process {process.pid}" in again.stderr
    start = time.monotonic()
    assert process.stop(signal.SIGINT) == 0
    assert time.monotonic() - start < 10 and not alive(everybody)
    assert not answers(process.url)


@pytest.mark.slow
def test_killed_without_warning_it_leaves_nothing_and_the_next_one_starts_and_goes_on(studio, sleepy):
    process = studio()
    job = sleepy(steps=80, seconds=0.03)
    until(lambda: Job.objects.get(pk=job.pk).done > 5)
    everybody = psutil.Process(process.pid).children(recursive=True)
    process.stop(signal.SIGKILL)
    until(lambda: not alive(everybody))
    studio()
    until(in_state(job, "succeeded"))
    assert job.result == {"steps": 80, "total": sum(range(80))}


def test_a_command_can_have_a_studio_for_as_long_as_it_needs_one():
    with rooms.studio("--no-worker", "--port", str(free_port())) as url:
        with urllib.request.urlopen(f"{url}login/") as reply:
            assert reply.status == 200
        assert not Worker.objects.exists(), "the site alone"
        pid = running_studio(rooms.settings.MISTUDIO_DATA)["pid"]
        with pytest.raises(CannotStart, match="did not start"), rooms.studio("--no-worker"):
            pass
    assert not psutil.pid_exists(pid) and not answers(url)


def test_an_unprepared_database_is_named_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    done = manage("studio", env={"MISTUDIO_DATA": str(tmp_path)})
    assert done.returncode == 1 and "mistudio migrate" in done.stderr


# ---- its parts


def test_a_ready_message_that_fails_does_not_end_the_site(caplog):
    said = []
    Studio(worker=False, on_ready=said.append).say_ready("http://here/")
    Studio(worker=False, on_ready=lambda url: 1 / 0).say_ready("http://here/")
    Studio(worker=False).say_ready("http://here/")
    assert said == ["http://here/"] and "The site runs at http://here/" in caplog.text


def test_a_port_that_was_asked_for_and_is_taken_is_an_error_and_otherwise_the_next_is_taken(settings):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart, match=f"Port {port} is in use"):
            listen("127.0.0.1", port)
        settings.MISTUDIO_PORT = port
        with listen("127.0.0.1", None) as found:
            assert port < found.getsockname()[1] < port + 50


def test_an_address_that_is_not_ours_is_named():
    with pytest.raises(CannotStart, match="Cannot listen on 203.0.113.7"):
        listen("203.0.113.7", 0)


def test_a_data_folder_has_one_studio_and_a_stale_lock_holds_nobody(tmp_path):
    lock_path(tmp_path).write_text(json.dumps({"pid": 1, "url": "http://old/"}))  # from one that was killed
    with lock_data(tmp_path) as held:
        rooms.sign_lock(held, "http://here/")
        assert running_studio(tmp_path) == {"pid": os.getpid(), "url": "http://here/"}
        with pytest.raises(CannotStart, match="already runs .* at http://here/"):
            lock_data(tmp_path)
    lock_data(tmp_path).close()
    assert running_studio(tmp_path / "nowhere") == {}


class Dying:
    """A process that has ended."""

    def poll(self):
        return 1


def test_a_worker_that_dies_at_once_is_started_ever_more_slowly(monkeypatch):
    starts, now = [], [1000.0]
    monkeypatch.setattr(rooms.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(rooms.processes, "spawn", lambda argv, env: starts.append(now[0]) or Dying())
    worker = KeptWorker("cpu")
    for _ in range(600):
        worker.tend()
        now[0] += 0.5
    waits = [round(b - a, 1) for a, b in zip(starts, starts[1:], strict=False)]
    assert waits[0] <= 0.5 and waits == sorted(waits) and waits[-1] == pytest.approx(30, abs=1)
    now[0] += 1000  # it ran long, then died: no more waiting
    worker.started = now[0] - 100
    worker.process = Dying()
    worker.tend()
    assert starts[-1] == now[0]


def test_a_worker_for_which_there_is_no_process_is_tried_again_later_and_later(monkeypatch):
    tried, now = [], [1000.0]

    def refuse(argv, env):
        tried.append(now[0])
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(rooms.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(rooms.processes, "spawn", refuse)
    worker = KeptWorker("cpu")
    for _ in range(40):
        worker.tend()
        now[0] += 1
    assert [b - a for a, b in zip(tried, tried[1:], strict=False)] == [2, 4, 8, 16]
    worker.tell(signal.SIGTERM)
    assert worker.ended()


def test_whoever_does_not_stop_is_killed(monkeypatch):
    told = []
    studio = Studio(worker=False)

    class Deaf:
        def tell(self, number):
            told.append(signal.Signals(number).name)

        def ended(self):
            return "SIGKILL" in told

    studio.workers = [Deaf()]
    monkeypatch.setattr(rooms.settings, "STOP_GRACE_SECONDS", -8)
    studio.stop()
    assert told == ["SIGTERM", "SIGKILL"]
