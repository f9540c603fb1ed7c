import pytest

from jobs.models import MOVES, Job, JobEvent, LiveEvent, State

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("start", State.values)
@pytest.mark.parametrize("to", State.values)
def test_only_the_moves_of_the_plan_are_possible(row, start, to):
    job = row(start)
    if to in MOVES[start]:
        assert job.move(to) and Job.objects.get(pk=job.pk).state == to
    else:
        with pytest.raises(ValueError, match=f"from {start} to {to}"):
            job.move(to)
        assert Job.objects.get(pk=job.pk).state == start


@pytest.mark.parametrize(
    ("start", "to", "stamp"),
    [
        ("queued", "running", "started_at"),
        ("running", "paused", "paused_at"),
        ("paused", "queued", "queued_at"),
        ("running", "succeeded", "finished_at"),
        ("running", "failed", "finished_at"),
        ("queued", "cancelled", "finished_at"),
    ],
)
def test_each_transition_has_its_own_timestamp(row, start, to, stamp):
    job = row(start)
    before = {name: getattr(job, name) for name in ("queued_at", "started_at", "paused_at", "finished_at")}
    job.move(to)
    after = Job.objects.get(pk=job.pk)
    changed = {name for name, value in before.items() if getattr(after, name) != value}
    assert changed == {stamp}


def test_of_two_who_move_the_same_job_one_is_told_no_and_leaves_no_event(row):
    first = row("queued")
    second = Job.objects.get(pk=first.pk)
    assert first.move(State.RUNNING, attempt=1)
    assert not second.move(State.CANCELLED)
    assert Job.objects.get(pk=first.pk).state == State.RUNNING
    assert [event.detail["state"] for event in JobEvent.objects.all()] == ["running"]


def test_an_old_attempt_cannot_end_the_new_one(row):
    old = row("running", attempt=1)
    Job.objects.filter(pk=old.pk).update(attempt=2)
    assert not old.move(State.SUCCEEDED)
    assert Job.objects.get(pk=old.pk).state == State.RUNNING


def test_a_move_keeps_its_fields_reason_and_detail(row):
    job = row("running")
    job.move(State.FAILED, "worker lost", {"pid": 7}, error_code="WORKER_LOST")
    event = JobEvent.objects.get()
    assert (event.what, event.detail) == ("worker lost", {"state": "failed", "pid": 7})
    assert Job.objects.get(pk=job.pk).error_code == job.error_code == "WORKER_LOST"


def test_wishes_are_forgotten_when_the_job_goes_back_to_the_queue(row):
    from django.utils import timezone

    job = row("running", pause_requested_at=timezone.now(), rate=3.0)
    job.move(State.QUEUED)
    job.refresh_from_db()
    assert job.pause_requested_at is None and job.rate is None and job.wish == ""


def test_every_move_tells_the_pages_that_show_the_job(row, team):
    row("queued").move(State.CANCELLED)
    topics = set(LiveEvent.objects.values_list("topic", flat=True))
    assert {f"jobs.{Job.objects.get().pk}", f"shell.{team.pk}", f"home.{team.pk}"} <= topics


def test_what_is_shown_is_derived_from_wishes_and_silence(row):
    from datetime import timedelta

    from django.utils import timezone

    now = timezone.now()
    long_ago = now - timedelta(minutes=5)
    assert row("running", started_at=now).shown_state == "running"
    assert row("running", started_at=now, cancel_requested_at=now, pause_requested_at=now).shown_state == "stopping"
    assert row("running", started_at=now, pause_requested_at=now).shown_state == "pausing"
    assert row("running", started_at=now, finish_requested_at=now).shown_state == "finishing"
    assert row("running", started_at=long_ago).shown_state == "stalled"
    assert row("running", started_at=long_ago, progress_at=now).shown_state == "running"
    assert row("cancelled", cancel_requested_at=now).shown_state == "cancelled"


def test_stages_say_what_is_done_and_what_is_to_come(row):
    def states(**fields):
        return [stage["state"] for stage in row(**fields).stages]

    assert states(state="queued") == ["todo", "todo"]
    assert states(state="running", stage="prepare", stage_index=0) == ["running", "todo"]
    assert states(state="running", stage="sleep", stage_index=1) == ["done", "running"]
    assert states(state="succeeded", stage="sleep", stage_index=1) == ["done", "done"]
    assert row(kind="gone").stages == []
