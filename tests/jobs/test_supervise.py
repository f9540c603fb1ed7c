"""Real child processes, each a Python with Django: what they cost is most of the time of these tests."""

import contextlib
import os
import signal
import threading
import time

import psutil
import pytest
from django.db import DatabaseError, connection

from jobs import processes, supervise
from jobs.devices import devices_of_its_own
from jobs.logs import LIMIT, log_path
from jobs.ml import allocator
from jobs.models import Job, LiveEvent, State
from jobs.queue import request_cancel, request_finish, request_pause, resume
from jobs.reap import reap
from jobs.supervise import STOPPING, Supervision, claim, run_here, work
from tests.jobs.conftest import until

pytestmark = pytest.mark.django_db(transaction=True)


def when(job, condition, action):
    """Do something to the row from outside, once it is so."""

    def wait():
        until(lambda: condition(Job.objects.get(pk=job.pk)))
        action(Job.objects.get(pk=job.pk))
        connection.close()

    threading.Thread(target=wait, daemon=True).start()


def working(job):
    return job.done > 0


def started(job):
    return job.pid is not None and job.stage == "sleep"


def events(job):
    return [event.what for event in job.events.all()]


def test_a_job_runs_in_a_process_of_its_own_and_succeeds(sleepy):
    job = run_here(sleepy(steps=5))
    assert (job.state, job.result, job.percent, job.exit_code) == ("succeeded", {"steps": 5, "total": 10}, 100, 0)
    assert job.pid not in (None, os.getpid()) and job.supervisor_pid == os.getpid()
    assert events(job) == ["queued", "attempt 1 started", "succeeded"]
    assert job.metrics.count() == 5
    assert "--- attempt 1" in log_path(job).read_text()


def test_the_process_of_a_job_keeps_memory_that_it_will_ask_for_again(sleepy):
    seen = set()

    def look(job):
        with contextlib.suppress(psutil.Error, KeyError):  # it may end in this moment
            seen.update([psutil.Process(job.pid).environ()[allocator.NAME]] if job.pid else [])

    run_here(sleepy(steps=50, seconds=0.05), on_look=look)
    (told,) = seen  # some versions of glibc cut what others see of it at the first colon
    assert told and allocator.environment()[allocator.NAME].startswith(told)


def test_the_devices_that_a_job_was_given_are_known(sleepy, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    job = sleepy(steps=1, seconds=0)
    Job.objects.filter(pk=job.pk).update(queue="gpu")
    job.refresh_from_db()
    with devices_of_its_own("gpu"):  # another job computes on the first
        job = run_here(job)
    assert job.devices == ["7"]


def test_who_comes_second_does_nothing(sleepy):
    job = sleepy()
    assert claim(job.pk) is not None
    assert claim(job.pk) is None and claim(10**9) is None
    work("cpu")  # a message that came twice
    assert run_here(job).attempt == 1
    assert events(job) == ["queued", "attempt 1 started"]


def test_nothing_starts_while_the_worker_stops(sleepy):
    job = sleepy()
    STOPPING.set()
    try:
        work("cpu")
    finally:
        STOPPING.set(False)
    job.refresh_from_db()
    assert (job.state, job.attempt) == ("queued", 0)


def test_a_failure_carries_code_message_hint_and_traceback(sleepy):
    job = run_here(sleepy(then="raise", error="DISK_FULL"))
    assert (job.state, job.error_code, job.error_message) == ("failed", "DISK_FULL", "Told to fail with DISK_FULL.")
    assert "Free some space" in job.error_hint and "Traceback" in job.error_detail
    assert job.exit_code == 1 and "Traceback" in log_path(job).read_text()


def test_paused_at_a_checkpoint_it_goes_on_from_there_to_the_same_result(sleepy):
    job = sleepy(steps=60, seconds=0.02)
    when(job, working, request_pause)
    job = run_here(job)
    assert job.state == "paused" and 0 < job.done < 60
    done, percent, used = job.done, job.percent, job.usage
    assert used["cpu"]["total"] > 0 and "processes" not in used, "nothing of it runs"
    assert resume(job)
    job = run_here(job)
    assert (job.state, job.result) == ("succeeded", {"steps": 60, "total": sum(range(60))})
    assert job.metrics.count() == 60 and job.attempt == 2
    assert job.usage["cpu"]["total"] > used["cpu"]["total"]
    assert job.usage["cpu"]["seconds"] > used["cpu"]["seconds"] + 0.7 * job.seconds, "of both attempts, to their ends"
    assert percent > 0 and min(job.progress_history.filter(pk__gt=0).values_list("percent", flat=True)) > 0
    assert log_path(job).read_text().count("--- attempt") == 2 and done > 0


def test_cancelled_it_ends_within_a_second_or_two(sleepy):
    job = sleepy(steps=10_000)
    when(job, working, request_cancel)
    job = run_here(job)
    assert (job.state, job.exit_code) == ("cancelled", 0)
    assert (job.finished_at - job.cancel_requested_at).total_seconds() < 2


def test_finished_early_it_succeeds_with_what_it_has(sleepy):
    job = sleepy(steps=10_000)
    when(job, working, request_finish)
    job = run_here(job)
    assert job.state == "succeeded" and 0 < job.result["steps"] < 10_000 and job.percent == 100


def test_what_hears_nothing_is_killed_after_the_grace_with_all_it_started(sleepy):
    job = sleepy(then="crowd")
    when(job, started, request_cancel)
    job = run_here(job)
    assert (job.state, job.exit_code) == ("cancelled", -signal.SIGKILL)
    assert members(job.pid) == []


def members(group):
    found = []
    for path in processes.PROC.glob("[0-9]*"):
        try:
            if os.getpgid(int(path.name)) == group and processes.start_of(int(path.name)):
                found.append(path.name)
        except ProcessLookupError:
            continue
    return found


def test_a_crash_is_named(sleepy):
    job = run_here(sleepy(then="signal", number=signal.SIGSEGV))
    assert (job.state, job.exit_code) == ("failed", -signal.SIGSEGV)
    assert "SIGSEGV" in job.error_message


def test_a_silent_exit_is_named_by_its_code(sleepy):
    job = run_here(sleepy(then="exit", number=7))
    assert job.state == "failed" and "exit code 7" in job.error_message


def test_killed_from_outside_it_is_queued_and_goes_on(sleepy):
    job = sleepy(steps=20, at=10, then="signal", number=signal.SIGKILL, times=1)
    job = run_here(job)
    assert (job.state, job.losses) == ("queued", 1)
    job = run_here(job)
    assert (job.state, job.result["steps"], job.attempt) == ("succeeded", 20, 2)
    assert "process killed by SIGKILL" in events(job)


def test_memory_that_runs_out_is_tried_again_with_half_the_batch(sleepy):
    job = run_here(sleepy(batch=8, fits=4, subject="thing:1"))
    assert (job.state, job.error_code) == ("failed", "OUT_OF_MEMORY")
    again = run_here(job.retries.get())
    assert (again.state, again.params["batch"], again.shrinks) == ("succeeded", 4, 1)


def test_a_memory_error_of_the_machine_is_out_of_memory(sleepy):
    job = run_here(sleepy(then="memory", batch=1))
    assert (job.state, job.error_code) == ("failed", "OUT_OF_MEMORY")


def test_a_flood_of_output_is_bounded_and_its_end_kept(sleepy):
    job = run_here(sleepy(steps=4, lines=20_000, seconds=0))
    text = log_path(job).read_text()
    assert log_path(job).stat().st_size <= LIMIT
    assert "bytes before this line were dropped" in text and "step 4, line 19999" in text


def test_a_stopping_worker_puts_the_job_back_with_its_checkpoint(sleepy):
    job = sleepy(steps=500, seconds=0.02)
    when(job, working, lambda job: STOPPING.set())
    try:
        work("cpu")
    finally:
        STOPPING.set(False)
    job.refresh_from_db()
    assert (job.state, job.losses) == ("queued", 0) and events(job)[-1] == "worker stopped"
    assert 0 < job.done < 500


def test_interrupted_in_the_foreground_it_is_paused(sleepy):
    job = sleepy(steps=500, seconds=0.02)
    when(job, working, lambda job: os.kill(os.getpid(), signal.SIGINT))
    assert run_here(job).state == "paused"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_command_sees_the_progress_of_what_it_runs(sleepy):
    seen = []
    run_here(sleepy(steps=100, seconds=0.02), on_look=lambda job: seen.append(job.percent))
    assert seen == sorted(seen) and any(0 < percent < 100 for percent in seen)


def test_a_job_that_was_given_to_others_is_killed_here_and_left_to_them(sleepy):
    job = sleepy(steps=10_000)
    when(job, working, lambda job: Job.objects.filter(pk=job.pk).update(attempt=9))
    job = run_here(job)
    assert (job.state, job.attempt) == ("running", 9)
    assert members(job.pid) == []


def test_the_end_of_an_attempt_says_nothing_about_the_next_one(row):
    job = row("running")
    supervision = Supervision(job, lambda: "")
    Job.objects.filter(pk=job.pk).update(attempt=9)
    supervision.finish(exit_code=1, oom_killed=False)
    job.refresh_from_db()
    assert (job.state, job.attempt) == ("running", 9)


def test_a_job_that_cannot_even_start_says_why(sleepy):
    job = sleepy()
    job.folder.parent.mkdir(parents=True)
    job.folder.write_text("a file where its folder should be")
    job = run_here(job)
    assert job.state == "failed" and job.error_message and job.attempt == 1
    job.folder.unlink()


class Quiet:
    """A supervision whose child is only a number, to hear what it is told."""

    def __init__(self, monkeypatch, job):
        self.sent = []
        monkeypatch.setattr(processes, "send", lambda pid, number: self.sent.append(signal.Signals(number).name))
        self.supervision = Supervision(job, lambda: "")


def test_each_word_is_said_once_and_a_cancel_outweighs_the_rest(monkeypatch, row):
    quiet = Quiet(monkeypatch, row())
    for word in ("finish", "finish", "pause", "pause", "cancel", "pause", "stop"):
        quiet.supervision.tell(1, word)
    assert quiet.sent == ["SIGUSR2", "SIGUSR1", "SIGINT"] and quiet.supervision.told == "cancel"


def test_what_is_used_is_written_with_the_heartbeat_and_outlives_the_supervisor(row):
    job = row("running", host=processes.this_host(), supervisor_pid=2**22 + 1, supervisor_start=1)
    job.folder.mkdir(parents=True)
    supervision = Supervision(job, lambda: "")
    time.sleep(0.01)
    supervision.look(os.getpgid(0))
    job.refresh_from_db()
    assert job.usage == {}, "not at each look"
    LiveEvent.objects.all().delete()
    supervision.heartbeat -= supervise.HEARTBEAT
    supervision.look(os.getpgid(0))
    job.refresh_from_db()
    used = job.usage
    assert used["cpu"]["total"] > 0 and os.getpid() in [one["pid"] for one in used["processes"]]
    assert [event.topic for event in LiveEvent.objects.all()] == [f"jobs.{job.pk}"]
    assert [ending.to for _, ending in reap()] == [State.QUEUED]
    again = claim(job.pk)
    assert again.usage["cpu"]["total"] == used["cpu"]["total"]
    assert "processes" not in again.usage and "now" not in again.usage["cpu"], "they are of the attempt before"


def test_an_attempt_that_lost_its_job_writes_nothing_of_what_it_used(row):
    job = row("running")
    supervision = Supervision(job, lambda: "")
    Job.objects.filter(pk=job.pk).update(attempt=9)
    supervision.heartbeat -= supervise.HEARTBEAT
    supervision.look(os.getpgid(0))
    supervision.finish(exit_code=0, oom_killed=False)
    job.refresh_from_db()
    assert job.usage == {}


def test_processes_that_cannot_be_read_do_not_disturb_the_job(monkeypatch, row):
    job = row("running")
    supervision = Supervision(job, lambda: "")
    monkeypatch.setattr(processes, "PROC", processes.PROC / "not there")
    supervision.measure(1)
    supervision.finish(exit_code=1, oom_killed=False)
    job.refresh_from_db()
    assert (job.state, job.usage) == ("failed", {})


def test_finishing_early_has_no_deadline(monkeypatch, row):
    quiet = Quiet(monkeypatch, row())
    quiet.supervision.tell(1, "finish")
    assert quiet.supervision.kill_at == float("inf")
    quiet.supervision.tell(1, "pause")
    assert quiet.supervision.kill_at < time.monotonic() + 100


def test_a_database_that_stays_away_stops_the_job_before_others_take_it(monkeypatch, row):
    quiet = Quiet(monkeypatch, row())

    def away(pid):
        raise DatabaseError("gone")

    monkeypatch.setattr(quiet.supervision, "look_at_row", away)
    quiet.supervision.look(1)
    assert quiet.sent == [], "a moment's absence disturbs nothing"
    quiet.supervision.heartbeat -= supervise.STALE
    quiet.supervision.look(1)
    assert quiet.sent == ["SIGTERM"]


def test_an_ending_is_written_as_soon_as_the_database_is_back(monkeypatch, row):
    job = row("running")
    calls = []

    def settle(job, ending):
        calls.append(ending.to)
        if len(calls) < 3:
            raise DatabaseError("locked")

    monkeypatch.setattr(supervise, "settle", settle)
    monkeypatch.setattr(supervise.time, "sleep", lambda seconds: None)
    Supervision(job, lambda: "").finish(exit_code=-11, oom_killed=False)
    assert calls == [State.FAILED] * 3


def test_out_of_memory_is_told_in_figures():
    words = supervise.out_of_memory_words(3 * 2**30)
    assert "3.00 GiB" in words and "of the machine's" in words
