import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from django.conf import settings
from django.db import OperationalError, connection

from jobs.processes import tied
from monitoring import sampler as module
from monitoring.models import Host, Sample
from monitoring.sampler import Sampler
from tests.conftest import ROOT, free_port

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()


@pytest.fixture
def at(monkeypatch):
    def set_to(moment):
        monkeypatch.setattr(module.time, "time", lambda: moment)

    return set_to


def seconds(resolution=1):
    return [row.at.timestamp() - NOW for row in Sample.objects.filter(resolution=resolution).order_by("at")]


@pytest.mark.django_db
def test_each_tick_keeps_a_reading_and_makes_coarser_rows(tmp_path, at):
    sampler = Sampler(2, tmp_path)
    for second in range(0, 66, 2):
        at(NOW + second + 0.01)
        sampler.tick()
    assert seconds() == list(range(0, 66, 2))
    assert seconds(10) == [0, 10, 20, 30, 40, 50] and seconds(60) == [0]
    host = Host.objects.get()
    assert host.name == socket.gethostname()
    assert host.facts["seconds"] == 2 and isinstance(host.facts["absent"], dict)


def test_ticks_do_not_drift_and_are_not_made_up_for(tmp_path):
    sampler = Sampler(2, tmp_path)
    assert sampler.leads()
    assert sampler.pause(NOW + 0.3) == pytest.approx(1.7)
    assert sampler.pause(NOW + 7200.5) == pytest.approx(1.5), "after a suspend it goes on with the next one"
    assert sampler.pause(NOW) == 2


def test_who_does_not_lead_looks_again_within_two_seconds(tmp_path):
    lead, standby = Sampler(60, tmp_path), Sampler(60, tmp_path)
    assert lead.leads() and lead.leads()
    assert not standby.leads()
    assert standby.pause(NOW) == 2 and lead.pause(NOW) == 60
    lead.lock.close()  # as the kernel does when its process ends
    assert standby.leads()


@pytest.mark.django_db
def test_two_hosts_share_a_database(tmp_path, at):
    samplers = [Sampler(2, tmp_path), Sampler(2, tmp_path)]
    samplers[0].name, samplers[1].name = "one", "two"
    for second in (0, 2, 4, 10):
        at(NOW + second)
        for sampler in samplers:
            sampler.tick()
    assert Counter(seconds()) == {0: 2, 2: 2, 4: 2, 10: 2}
    assert seconds(10) == [0, 0]


@pytest.mark.django_db(transaction=True)
def test_what_cannot_be_written_waits_and_is_logged_once(tmp_path, at, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    sampler = Sampler(2, tmp_path)

    def full(*args):
        raise OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(module, "record", full)
        for second in (0, 2, 4):
            at(NOW + second)
            sampler.tick()
    assert seconds() == []
    at(NOW + 6)
    sampler.tick()
    assert seconds() == [0, 2, 4, 6]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["The monitor keeps no readings for now: database or disk is full"]


@pytest.mark.django_db(transaction=True)
def test_a_host_whose_row_was_deleted_gets_another(tmp_path, at):
    sampler = Sampler(2, tmp_path)
    at(NOW)
    sampler.tick()
    Host.objects.all().delete()
    for second in (2, 4):
        at(NOW + second)
        sampler.tick()
    assert Host.objects.get().samples.count() == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "sqlite", reason="of a file that one process locks")
def test_a_locked_database_costs_no_reading(tmp_path, at, monkeypatch):
    sampler = Sampler(2, tmp_path)
    at(NOW)
    sampler.tick()
    other = subprocess.Popen(
        [sys.executable, "-c", LOCK.format(path=connection.settings_dict["NAME"])], stdout=subprocess.PIPE
    )
    connection.ensure_connection()
    connection.connection.execute("PRAGMA busy_timeout = 100")
    try:
        assert other.stdout.readline()
        at(NOW + 2)
        sampler.tick()
        assert "locked" in sampler.trouble
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    at(NOW + 4)
    sampler.tick()
    assert seconds() == [0, 2, 4] and not sampler.trouble


LOCK = """
import sqlite3, time
held = sqlite3.connect({path!r}, isolation_level=None)
held.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(60)
"""


# ---- real web processes


@pytest.fixture
def web_processes():
    """Plain daphne processes on the tests' data."""
    started = []

    def start():
        command = [sys.executable, "-m", "daphne", "-p", str(free_port()), "mistudio.asgi:application"]
        environment = {**os.environ, "MISTUDIO_MONITOR_SECONDS": "1"}
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, preexec_fn=tied(signal.SIGKILL, hold=False))
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def leader():
    """The process that said last that it leads."""
    path = settings.MISTUDIO_DATA / f"monitor-{socket.gethostname()}.lock"
    text = path.read_text() if path.exists() else ""
    return int(text or 0)


def wait_until(true, patience=60):
    until = time.monotonic() + patience
    while not true():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_when_the_lead_is_killed_the_other_web_process_goes_on(web_processes):
    processes = {process.pid: process for process in (web_processes(), web_processes())}
    wait_until(lambda: Sample.objects.filter(resolution=1).count() >= 3)
    lead = leader()
    processes[lead].kill()
    processes.pop(lead).wait()
    before = Sample.objects.filter(resolution=1).count()
    wait_until(lambda: leader() in processes)
    wait_until(lambda: Sample.objects.filter(resolution=1).count() >= before + 12)
    wait_until(lambda: Sample.objects.filter(resolution=10).exists())
    assert Host.objects.count() == 1
    for resolution in (1, 10):
        times = [row.at for row in Sample.objects.filter(resolution=resolution)]
        assert len(times) == len(set(times)), "no row is doubled"
    coarse = Sample.objects.filter(resolution=10).earliest("at")
    finer = Sample.objects.filter(resolution=1, at__gte=coarse.at, at__lt=coarse.at + timedelta(seconds=10))
    assert coarse.n == finer.count()


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_host_without_a_site_has_a_command_that_keeps_its_readings():
    environment = {**os.environ, "MISTUDIO_MONITOR_SECONDS": "1"}
    command = [sys.executable, "manage.py", "monitor", "--keep"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: Sample.objects.filter(resolution=1).count() >= 3)
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0 and process.stderr.read() == b""
