import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
from django.utils import timezone

from jobs import processes
from jobs import reap as reaping
from jobs.models import Job, LiveEvent, State, Worker
from jobs.outcome import Outcome, write_outcome
from jobs.queue import nudges, pause_queue, resume_queue
from jobs.reap import forget, reap, resend
from jobs.supervise import STALE, claim
from tests.jobs.conftest import in_state, until

pytestmark = pytest.mark.django_db(transaction=True)

GONE = {"supervisor_pid": 2**22 + 1, "supervisor_start": 1}


def ago(seconds):
    return timezone.now() - timedelta(seconds=seconds)


@pytest.fixture
def lost(row):
    """Running on this host, its supervisor gone."""

    def make(**fields):
        known = {**GONE, "host": processes.this_host(), "heartbeat_at": ago(1), "started_at": ago(60)}
        job = row("running", **{**known, **fields})
        job.folder.mkdir(parents=True)
        return job

    return make


@pytest.fixture
def stranger():
    """Some process that has nothing to do with jobs."""
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_job_whose_supervisor_is_gone_is_queued_again_with_a_message(lost):
    job = lost()
    assert [(found.pk, ending.why) for found, ending in reap()] == [(job.pk, "worker lost")]
    job.refresh_from_db()
    assert (job.state, job.losses) == ("queued", 1) and nudges("cpu") == 1
    assert reap() == [], "once is enough"


def test_what_has_a_living_supervisor_is_left_alone(lost):
    me = {"supervisor_pid": os.getpid(), "supervisor_start": processes.start_of(os.getpid())}
    job = lost(**me, heartbeat_at=ago(60))
    assert reap() == []
    Job.objects.filter(pk=job.pk).update(heartbeat_at=ago(STALE + 1))
    assert len(reap()) == 1, "but one that hangs has lost it too"


def test_on_another_host_only_a_long_silence_counts(lost):
    job = lost(host="elsewhere/1/2")
    assert reap() == []
    Job.objects.filter(pk=job.pk).update(heartbeat_at=ago(STALE + 1))
    assert reap(trust_heartbeats=False) == [], "nobody's heartbeat counts while this machine slept"
    assert len(reap()) == 1


def test_a_success_that_nobody_saw_is_a_success(lost):
    job = lost()
    write_outcome(job, Outcome(1, "succeeded", result={"n": 3}))
    reap()
    job.refresh_from_db()
    assert (job.state, job.result, job.percent) == ("succeeded", {"n": 3}, 100)


def test_a_failure_and_a_pause_that_nobody_saw_count_too(lost):
    failed, paused = lost(), lost()
    error = {"code": "NETWORK", "message": "refused", "hint": "", "suggestion": {}}
    write_outcome(failed, Outcome(1, "failed", error=error))
    write_outcome(paused, Outcome(1, "paused"))
    reap()
    assert in_state(failed, "failed")() and in_state(paused, "paused")()


def test_a_job_that_cannot_be_reaped_does_not_keep_the_others_from_it(lost, monkeypatch, caplog):
    bad, good = lost(), lost()
    judge = reaping.judge

    def fails_for_one(job, outcome, **said):
        if job.pk == bad.pk:
            raise ValueError("a word that no database takes")
        return judge(job, outcome, **said)

    monkeypatch.setattr(reaping, "judge", fails_for_one)
    assert [job.pk for job, _ in reap()] == [good.pk]
    assert f"Job {bad.pk} cannot be reaped" in caplog.text


def test_a_lost_job_that_was_to_be_cancelled_is_cancelled(lost):
    job = lost(cancel_requested_at=timezone.now())
    reap()
    assert in_state(job, State.CANCELLED)()


def test_a_stranger_with_the_same_number_is_never_killed(lost, stranger):
    start = processes.start_of(stranger.pid)
    earlier = lost(pid=stranger.pid, pid_start=start - 1)  # an older process had this number
    same = lost(pid=stranger.pid, pid_start=start, heartbeat_at=ago(600))  # but it is no run_job
    elsewhere = lost(pid=stranger.pid, pid_start=start, host="elsewhere/1/2", heartbeat_at=ago(600))
    reap()
    assert stranger.poll() is None
    for job in (earlier, same, elsewhere):
        assert in_state(job, "queued")(), "the job goes on nevertheless"


@pytest.fixture
def orphan(lost):
    """A process that looks like the job's own and hears no SIGTERM."""
    started = []

    def make(**fields):
        job = lost()
        code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
        command = [sys.executable, "-c", code, "run_job", str(job.pk), "1"]
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
        process.stdout.readline()
        started.append(process)
        Job.objects.filter(pk=job.pk).update(pid=process.pid, pid_start=processes.start_of(process.pid), **fields)
        return job, process

    yield make
    for process in started:
        process.kill()
        process.communicate()


def test_an_orphan_gets_its_grace_and_is_killed_before_the_job_goes_on(orphan):
    job, process = orphan()
    assert reap() == [] and process.poll() is None, "it may be writing its checkpoint"
    Job.objects.filter(pk=job.pk).update(heartbeat_at=ago(60))
    assert len(reap()) == 1
    assert process.wait(60) == -signal.SIGKILL and in_state(job, "queued")()


def test_a_supervisor_killed_without_warning_leaves_no_running_child(sleepy, beside):
    """A command that runs a job is killed -9: its child ends by itself, and the next round finds the job."""
    job = sleepy(steps=100_000)
    runner = beside("jobs", "wait", str(job.pk))
    until(lambda: Job.objects.get(pk=job.pk).done > 3)
    child = Job.objects.get(pk=job.pk).pid
    runner.stop(signal.SIGKILL)
    until(lambda: processes.start_of(child) is None)
    until(reap)
    job.refresh_from_db()
    assert job.state == "queued" and job.done > 3
    assert job.percent > 0 and job.losses == 0, "it saved its state: nothing was lost"


def test_what_waits_without_a_message_gets_one_and_never_two(sleepy):
    from django_q.models import OrmQ

    sleepy(), sleepy()
    OrmQ.objects.all().delete()
    assert resend() == {}, "its message may be on its way"
    Job.objects.update(queued_at=ago(10))
    assert resend() == {"cpu": 2}
    assert resend() == {} and OrmQ.objects.count() == 2


def test_a_message_taken_by_a_cluster_that_died_is_sent_again(sleepy):
    from django_q.models import OrmQ

    sleepy()
    OrmQ.objects.update(lock=timezone.now() + timedelta(days=60))
    Job.objects.update(queued_at=ago(10))
    assert resend() == {"cpu": 1} and nudges("cpu") == 1


def test_a_paused_queue_is_sent_nothing_until_it_is_resumed(sleepy):
    from django_q.models import OrmQ

    sleepy(), sleepy()
    pause_queue("cpu")
    OrmQ.objects.all().delete()  # workers found the queue paused
    Job.objects.update(queued_at=ago(10))
    assert resend() == {}
    assert resume_queue("cpu") and nudges("cpu") == 2


def test_old_events_and_silent_workers_are_forgotten(db):
    for minutes in (1, 30):
        LiveEvent.objects.create(topic=f"t.{minutes}", at=ago(60 * minutes))
        Worker.objects.create(host="h", pid=minutes, queue="cpu", slots=1, heartbeat_at=ago(60 * minutes))
    forget()
    assert LiveEvent.objects.get().topic == "t.1" and Worker.objects.get().pid == 1


def test_the_command_says_what_it_found(lost, capsys):
    import json

    from django.core.management import call_command

    job = lost()
    call_command("reap_jobs", "--json")
    said = json.loads(capsys.readouterr().out)
    assert said == {"reaped": [{"job": job.pk, "why": "worker lost", "state": "queued"}], "sent_again": {}}
    call_command("reap_jobs")
    assert capsys.readouterr().out == "0 lost jobs, 0 messages sent again\n"


def test_a_claim_leaves_what_the_reaper_needs(sleepy):
    job = claim(sleepy().pk)
    assert (job.host, job.supervisor_pid) == (processes.this_host(), os.getpid())
    assert job.supervisor_start == processes.start_of(os.getpid()) and job.heartbeat_at
