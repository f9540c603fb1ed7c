import dataclasses

import pytest
from django.utils import timezone

from jobs.endings import judge, settle
from jobs.errors import JobError, classify
from jobs.models import Job, State
from jobs.outcome import NO_SPACE, Outcome
from jobs.queue import nudges

pytestmark = pytest.mark.django_db

DONE = Outcome(1, "succeeded", result={"n": 1})


def failed(code="NETWORK", message="refused"):
    return Outcome(1, "failed", error=dataclasses.asdict(classify(JobError(code, message))), detail="Traceback …")


@pytest.mark.parametrize(
    ("outcome", "told", "exit_code", "to", "why"),
    [
        (DONE, "", 0, "succeeded", "succeeded"),
        (DONE, "cancel", 0, "succeeded", "succeeded"),  # it was faster than the wish
        (DONE, "", None, "succeeded", "succeeded"),  # nobody saw its end, but it left its word
        (failed(), "", 1, "failed", "failed"),
        (failed(), "pause", 1, "failed", "failed"),
        (failed(), "cancel", 1, "cancelled", "cancelled"),
        (Outcome(1, "cancelled"), "cancel", 0, "cancelled", "cancelled"),
        (Outcome(1, "paused"), "pause", 0, "paused", "paused"),
        (Outcome(1, "stopped"), "stop", 0, "queued", "worker stopped"),
        (Outcome(1, "stopped"), "", 0, "queued", "worker stopped"),  # a shutdown of the machine told it directly
        (Outcome(1, "stopped"), "pause", 0, "paused", "paused"),
        (None, "cancel", -9, "cancelled", "cancelled"),
        (None, "pause", -9, "paused", "paused"),
        (None, "stop", -9, "queued", "worker stopped"),
        (None, "", 0, "failed", "failed"),
        (None, "", 3, "failed", "failed"),
        (None, "", -11, "failed", "failed"),
        (None, "", -9, "queued", "process killed by SIGKILL"),
        (None, "", -15, "queued", "process killed by SIGTERM"),
        (None, "", None, "queued", "worker lost"),
    ],
)
def test_the_ending_follows_from_the_last_word_the_wish_and_the_exit(row, outcome, told, exit_code, to, why):
    ending = judge(row(), outcome, told=told, exit_code=exit_code)
    assert (ending.to, ending.why) == (to, why)
    assert ending.fields["exit_code"] == exit_code


@pytest.mark.parametrize(
    ("told", "exit_code", "wish", "to"),
    [
        ("", None, "pause_requested_at", State.PAUSED),
        ("", None, "cancel_requested_at", State.CANCELLED),
        ("stop", -9, "cancel_requested_at", State.CANCELLED),
        ("", -11, "pause_requested_at", State.FAILED),
    ],
)
def test_what_was_wished_for_while_nobody_heard_it_is_done_at_the_end(row, told, exit_code, wish, to):
    job = row(**{wish: timezone.now()})
    assert judge(job, None, told=told, exit_code=exit_code).to == to


def test_a_failure_says_code_words_hint_and_what_to_click(row):
    fields = judge(row(), failed(), exit_code=1).fields
    assert (fields["error_code"], fields["error_message"]) == ("NETWORK", "refused")
    assert fields["error_hint"].startswith("Check the connection") and fields["error_detail"] == "Traceback …"
    assert fields["suggestion"] == {"label": "Try again", "overrides": {}}


def test_a_crash_is_named_by_its_signal_and_shows_the_end_of_the_log(row):
    job = row()
    job.folder.mkdir(parents=True)
    (job.folder / "log.txt").write_text("Fatal Python error: Segmentation fault\n")
    fields = judge(job, None, exit_code=-11).fields
    assert fields["error_message"] == "The process crashed with SIGSEGV (signal 11)."
    assert fields["error_detail"] == "Fatal Python error: Segmentation fault"


def test_a_process_without_room_for_its_last_word_had_a_full_disk(row):
    fields = judge(row(), None, exit_code=NO_SPACE).fields
    assert fields["error_code"] == "DISK_FULL" and "Free some space" in fields["error_hint"]


def test_a_silent_exit_is_named_by_its_code(row):
    assert "exit code 3 without saying why" in judge(row(), None, exit_code=3).fields["error_message"]


def test_a_kill_by_the_kernel_is_out_of_memory_in_its_words(row):
    ending = judge(row(), None, exit_code=-9, oom="it used 3.10 GiB")
    assert ending.to == State.FAILED
    assert (ending.fields["error_code"], ending.fields["error_message"]) == ("OUT_OF_MEMORY", "it used 3.10 GiB")


def test_a_lost_job_is_queued_again_as_long_as_it_makes_progress(row):
    moving = judge(row(percent=30, percent_at_start=20, losses=2), None)
    assert (moving.to, moving.fields["losses"]) == (State.QUEUED, 1)
    standing = judge(row(percent=20, percent_at_start=20, losses=1), None)
    assert (standing.to, standing.fields["losses"]) == (State.QUEUED, 2)


def test_the_third_loss_without_progress_is_a_failure_with_figures(row):
    job = row(percent=20, percent_at_start=20, losses=2, attempt=4, pid=4711, host="box/1/2")
    ending = judge(job, None)
    assert ending.to == State.FAILED and ending.fields["error_code"] == "WORKER_LOST"
    words = ending.fields["error_message"]
    assert all(part in words for part in ("3 times in a row", "attempt 4", "process 4711", "on box", "20.0 %"))
    assert ending.detail["pid"] == 4711


def test_a_kind_that_would_start_over_fails_at_the_first_loss(row, monkeypatch):
    from jobs.kinds import sleepy

    monkeypatch.setattr(sleepy, "RESUMABLE", False)
    assert judge(row(percent=50), None).to == State.FAILED


def test_out_of_memory_is_tried_again_with_half_the_batch_three_times_and_no_more(sleepy):
    job = sleepy(batch=64, subject="thing:1")
    batches = []
    for _ in range(4):
        Job.objects.filter(pk=job.pk).update(state="running", attempt=1)
        job.refresh_from_db()
        settle(job, judge(job, failed("OUT_OF_MEMORY", "2 GiB asked"), exit_code=1))
        batches.append(job.params["batch"])
        last, job = job, job.retries.first()
    assert batches == [64, 32, 16, 8] and job is None
    assert last.suggestion == {"label": "Retry with batch 4", "overrides": {"batch": 4}}, "by hand it goes on"
    assert "retried with less memory" in [event.what for event in last.retry_of.events.all()]


def test_out_of_memory_with_nothing_to_make_smaller_just_fails(sleepy):
    job = sleepy(batch=1)
    Job.objects.filter(pk=job.pk).update(state="running")
    job.refresh_from_db()
    settle(job, judge(job, failed("OUT_OF_MEMORY"), exit_code=1))
    assert job.state == State.FAILED and not job.retries.exists()
    assert job.suggestion["overrides"] == {}


def test_going_back_to_the_queue_sends_a_message(row):
    job = row()
    assert settle(job, judge(job, Outcome(1, "stopped")))
    assert nudges("cpu") == 1


def test_what_belongs_to_another_attempt_is_left_alone(row):
    job = row()
    Job.objects.filter(pk=job.pk).update(attempt=2)
    assert not settle(job, judge(job, DONE))
    assert Job.objects.get(pk=job.pk).state == State.RUNNING and not nudges("cpu")
