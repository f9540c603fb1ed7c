import os
import signal
import subprocess
import sys
import time

import pytest

from jobs.models import Job
from jobs.processes import tied
from jobs.queue import submit
from tests.conftest import ROOT


@pytest.fixture
def sleepy(team, tmp_path):
    """Submit a sleepy job; its checkpoints are in a folder of this test."""

    def make(owner=None, subject="", title="", **params):
        params.setdefault("folder", str(tmp_path / "work"))
        return submit("sleepy", params, team=team, owner=owner, subject=subject, title=title)

    return make


@pytest.fixture
def row(team):
    """A row as if its job were in some state, without anything behind it."""

    def make(state="running", **fields):
        known = {"kind": "sleepy", "queue": "cpu", "title": "a job", "attempt": 1 if state != "queued" else 0}
        return Job.objects.create(team=team, state=state, **{**known, **fields})

    return make


# The site without workers, for scripts that set something before.
WEB = """
import sys, django
django.setup()
from jobs import live
if "deaf" in sys.argv:  # to datagrams, like a process on another host
    live.bells = lambda: live.settings.MISTUDIO_DATA / "no-bells"
from jobs.studio import Studio, listen
studio = Studio(worker=False)
with listen("127.0.0.1", int(sys.argv[1])) as listener:
    studio.serve(listener, "")
"""


def until(condition, seconds=120, every=0.05):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(every)
    return found


def in_state(job, *states):
    def look():
        job.refresh_from_db()
        return job.state in states

    return look


class Process:
    """A management command, or with command=() a script, that runs beside the test."""

    def __init__(self, folder, *arguments, env=None, command=("manage.py",)):
        self.log = folder / f"{time.monotonic_ns()}.log"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, *command, *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=tied(signal.SIGKILL, hold=False),  # a test run that is killed leaves nothing behind
            )
        self.pid = self.process.pid

    def text(self):
        return self.log.read_text()

    def stop(self, number=signal.SIGTERM, seconds=60):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)


@pytest.fixture
def beside(tmp_path):
    """Start commands beside the test; whatever still lives at its end is killed."""
    started = []

    def start(*arguments, **options):
        started.append(Process(tmp_path, *arguments, **options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
