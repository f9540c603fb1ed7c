import errno
import os
import signal
import time

import pytest
from django.db import OperationalError

from jobs import child, processes
from jobs.context import Context
from jobs.models import Job
from jobs.outcome import NO_SPACE, Outcome, read_outcome

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def claimed(sleepy):
    def make(**params):
        job = sleepy(**params)
        Job.objects.filter(pk=job.pk).update(state="running", attempt=1)
        job.refresh_from_db()
        job.folder.mkdir(parents=True)
        return job

    return make


@pytest.fixture
def here(monkeypatch):
    """What a process of its own may do to itself, and the test process must not."""
    monkeypatch.setattr(child, "give_way", lambda: None)
    monkeypatch.setattr(child, "watch_parent", lambda: None)
    handlers = {number: signal.getsignal(number) for number in child.SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_success_is_ingested_and_left_as_an_outcome(claimed, here, tmp_path):
    job = claimed(steps=3)
    assert child.run(job.pk, 1) == 0
    outcome = read_outcome(job)
    assert (outcome.how, outcome.result) == ("succeeded", {"steps": 3, "total": 3})
    assert (tmp_path / "work" / "ingested.json").exists()
    job.refresh_from_db()
    assert job.state == "running", "the supervisor moves the row, not the child"
    assert job.pid == os.getpid() and job.done == 3


def test_failure_leaves_its_code_and_its_traceback(claimed, here):
    job = claimed(then="raise", error="DISK_FULL")
    assert child.run(job.pk, 1) == 1
    outcome = read_outcome(job)
    assert outcome.how == "failed" and outcome.error["code"] == "DISK_FULL" and "raise_error" in outcome.detail


@pytest.mark.parametrize("word", ["cancel", "pause", "stop"])
def test_what_was_wished_is_how_it_ended(claimed, word):
    job = claimed()
    context = Context(job.pk, 1)
    context.wished = word
    assert child.perform(job, context).how == {"cancel": "cancelled", "pause": "paused", "stop": "stopped"}[word]


def test_an_early_finish_is_a_success(claimed):
    job = claimed(steps=50)
    context = Context(job.pk, 1)
    context.wished = "finish"
    outcome = child.perform(job, context)
    assert (outcome.how, outcome.result) == ("succeeded", {"steps": 0, "total": 0})


def test_a_full_disk_is_told_by_the_exit_code(claimed, monkeypatch):
    def full(job, outcome):
        raise OSError(errno.ENOSPC, "No space left on device")

    def broken(job, outcome):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(child, "write_outcome", full)
    assert child.say(claimed(), Outcome(1, "succeeded")) == NO_SPACE
    monkeypatch.setattr(child, "write_outcome", broken)
    assert child.say(claimed(), Outcome(1, "succeeded")) == 1


def test_a_kind_that_exits_python_has_failed(claimed, monkeypatch):
    from jobs.kinds import sleepy

    monkeypatch.setattr(sleepy, "run", lambda params, ctx: exit(0))
    outcome = child.perform(claimed(), Context())
    assert outcome.how == "failed" and "SystemExit" in outcome.detail


def test_a_job_of_another_attempt_or_in_another_state_is_not_touched(claimed):
    job = claimed()
    assert child.run(job.pk, 2) == 3
    Job.objects.filter(pk=job.pk).update(state="cancelled")
    assert child.run(job.pk, 1) == 3
    assert child.run(10**9, 1) == 3
    assert read_outcome(job) is None and not (job.folder / "log.txt").exists()


def test_a_job_taken_over_in_the_moment_of_signing_in_is_left(claimed):
    job = claimed()
    Job.objects.filter(pk=job.pk).update(attempt=2)
    assert not child.sign_in(job)


def test_signals_are_words_and_nothing_takes_back_a_stop(here):
    context = Context()
    child.listen(context)
    for number, word in ((signal.SIGUSR2, "finish"), (signal.SIGUSR1, "pause"), (signal.SIGINT, "cancel")):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert context.wish() == word
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(0.01)
    assert context.wish() == "stop"


def test_every_error_code_can_be_told_to_sleepy(claimed):
    outcome = child.perform(claimed(then="raise", error="something odd"), Context())
    assert outcome.error["code"] == "UNKNOWN" and "something odd" in outcome.error["message"]


def test_a_database_that_was_away_for_a_moment_costs_no_finished_work(claimed, monkeypatch):
    said = []

    def ingest(job, result):
        said.append(result)
        if len(said) < 3:
            raise OperationalError("the server closed the connection")

    monkeypatch.setattr(child, "import_string", lambda path: ingest)
    monkeypatch.setattr(child.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(child.connections, "close_all", lambda: said.append("closed"))
    outcome = child.perform(claimed(steps=1, seconds=0), Context())
    assert outcome.how == "succeeded" and [word for word in said if word == "closed"] == ["closed"]


def test_a_process_is_known_by_its_start_and_not_by_its_number_alone():
    me = os.getpid()
    assert processes.alive(me, processes.start_of(me))
    assert not processes.alive(me, processes.start_of(me) - 1), "another process had this number before"
    assert not processes.alive(None, None) and not processes.alive(2**22 + 1, 5)
    assert processes.start_of(2**22 + 1) is None and processes.command_line(2**22 + 1) == []
    assert processes.memory_of(me) > 10**6 and processes.memory_of(2**22 + 1) == 0


def test_a_zombie_is_dead():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    while not processes.ended(pid):
        time.sleep(0.01)
    assert processes.start_of(pid) is None
    os.waitpid(pid, 0)
