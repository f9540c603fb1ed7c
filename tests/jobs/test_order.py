from datetime import timedelta

import pytest
from django.utils import timezone

from jobs import queue
from jobs.endings import Ending, settle
from jobs.errors import InvalidInput
from jobs.models import Job, QueuePause, State
from jobs.order import in_order, put
from jobs.supervise import claim, claim_next, work
from tests.jobs.conftest import in_state, until

pytestmark = pytest.mark.django_db


def ago(minutes):
    return timezone.now() - timedelta(minutes=minutes)


@pytest.fixture
def waits(row):
    """Job rows by their titles: "a1" is alice's; each was queued a minute after the one before."""

    def make(titles, owners, **fields):
        names = titles.split()
        return [
            row("queued", title=title, owner=owners.get(title[0]), queued_at=ago(len(names) - n), **fields)
            for n, title in enumerate(names)
        ]

    return make


@pytest.fixture
def people(alice, bob):
    return {"a": alice, "b": bob}


def order(name="cpu"):
    titles = dict(Job.objects.values_list("pk", "title"))
    return " ".join(titles[waiting.pk] for waiting in in_order(name))


def started(until=100):
    """The titles of the jobs that one slot after another takes."""
    jobs = (claim_next("cpu") for _ in range(until))
    return " ".join(job.title for job in jobs if job)


# ---- the order


def test_of_one_user_who_came_first_is_first(waits, people):
    waits("a1 a2 a3", people)
    assert order() == started() == "a1 a2 a3"


def test_users_take_turns_however_many_jobs_one_has_sent_before_the_other(waits, people):
    waits("a1 a2 a3 a4 b1 b2 n1", people)
    assert order() == started() == "a1 b1 n1 a2 b2 a3 a4", "jobs of nobody have one owner, too"


def test_who_has_fewer_jobs_running_is_next(waits, people, row):
    row("running", owner=people["a"], started_at=ago(50))
    row("running", owner=people["b"], started_at=ago(50), queue="gpu")
    waits("a1 a2 b1 b2 b3", people)
    assert order() == started() == "b1 a1 b2 a2 b3"


def test_with_one_slot_users_take_turns_too_by_whom_was_served_longest_ago(waits, people):
    waits("a1 a2 a3 b1 b2", people)
    seen = []
    while job := claim_next("cpu"):
        seen.append(job.title)
        job.move("succeeded")
    assert " ".join(seen) == "a1 b1 a2 b2 a3"


def test_who_was_served_more_than_a_day_ago_waits_like_who_never_was(waits, people, row):
    row("succeeded", owner=people["a"], started_at=ago(2 * 24 * 60))
    waits("a1 b1", people)
    assert order() == "a1 b1"
    row("succeeded", owner=people["a"], started_at=ago(60))
    assert order() == "b1 a1"


def test_a_priority_outweighs_turns(waits, people):
    a1, a2, b1, b2 = waits("a1 a2 b1 b2", people)
    assert put(a2, "first") and put(b1, "later")
    assert order() == "a2 b2 a1 b1"
    assert put(b2, "first") and order() == "b2 a2 a1 b1", "the last who was put first is first"
    assert put(a1, "later") and order() == "b2 a2 b1 a1"
    for job in (a1, a2, b1, b2):
        put(job, "normal")
    assert order() == started() == "a1 b1 a2 b2"


def test_of_another_queue_nothing_is_said(waits, people):
    waits("a1", people)
    waits("b1", people, queue="gpu")
    assert (order("cpu"), order("gpu")) == ("a1", "b1")


def test_being_put_elsewhere_is_in_the_history_and_only_for_what_waits(row):
    job, running = row("queued"), row("running")
    assert put(job, "first", by="alice") and not put(running, "first")
    (event,) = job.events.all()
    assert (event.what, event.detail) == ("asked to run first", {"by": "alice"}) and not running.events.exists()
    with pytest.raises(InvalidInput, match="no place “nowhere”"):
        put(job, "nowhere")


def test_a_retry_keeps_the_priority(sleepy):
    job = sleepy()
    put(job, "first")
    queue.request_cancel(job)
    assert queue.retry(job).priority == 1


# ---- messages


def test_a_message_starts_the_job_whose_turn_it_is(sleepy, monkeypatch):
    begun = []
    monkeypatch.setattr("jobs.supervise.Supervision.run", lambda supervision: begun.append(supervision.job.pk))
    early, late = sleepy(), sleepy()
    put(late, "first")
    for _ in range(3):
        work("cpu")
    assert begun == [late.pk, early.pk], "the third message found nothing"


def test_the_message_of_a_cancelled_job_starts_another(sleepy):
    gone, there = sleepy(), sleepy()
    queue.request_cancel(gone)
    assert claim_next("cpu").pk == there.pk and claim_next("cpu") is None


def test_when_another_worker_was_faster_the_next_is_taken(row, monkeypatch):
    first, second = row("queued"), row("queued")
    tried = []

    def claim_late(pk):
        tried.append(pk)
        if pk == first.pk:
            Job.objects.filter(pk=pk).update(state="running")
        return claim(pk)

    monkeypatch.setattr("jobs.supervise.claim", claim_late)
    assert claim_next("cpu").pk == second.pk and tried == [first.pk, second.pk]


# ---- pauses


def test_of_a_paused_queue_nothing_starts_and_what_runs_goes_on(row, alice):
    running, waiting, other = row("running"), row("queued"), row("queued", queue="gpu")
    assert queue.pause_queue("cpu", by=alice, reason="  a new\ndriver ")
    assert claim_next("cpu") is None and claim_next("gpu").pk == other.pk
    assert not queue.pause_queue("cpu", reason="again"), "who did it, and why, stays"
    assert str(QueuePause.objects.get()).startswith("The cpu queue is paused by alice since 20")
    assert QueuePause.objects.get().reason == "a new driver"
    running.refresh_from_db()
    assert running.wish == ""
    assert queue.resume_queue("cpu") and not queue.resume_queue("cpu")
    assert claim_next("cpu").pk == waiting.pk


def test_pausing_now_asks_what_can_go_on_later_and_resuming_brings_it_back(row, monkeypatch):
    running, rested = row("running"), row("paused")
    monkeypatch.setattr("jobs.kinds.tokenize.RESUMABLE", False)
    stubborn = row("running", kind="tokenize")
    queue.pause_queue("cpu", now=True)
    for job in (running, stubborn):
        job.refresh_from_db()
    assert (running.wish, stubborn.wish) == ("pause", "")
    running.move("paused")
    assert queue.resume_queue("cpu")
    assert in_state(running, "queued")() and in_state(rested, "paused")(), "what rested before still rests"
    assert queue.nudges("cpu") == 1


def test_a_job_that_obeys_only_after_the_queue_was_resumed_goes_on_too(row):
    running = row("running")
    queue.pause_queue("cpu", now=True)
    queue.resume_queue("cpu")
    running.refresh_from_db()
    assert settle(running, Ending(State.PAUSED, "paused"))
    assert in_state(running, "queued")() and queue.nudges("cpu") == 1


def test_a_command_still_runs_its_own_job_where_no_worker_is(row):
    job = row("queued")
    queue.pause_queue("cpu")
    assert claim(job.pk)


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_worker_leaves_a_paused_queue_alone_and_begins_when_it_is_resumed(beside, sleepy):
    queue.pause_queue("cpu")
    job = sleepy(steps=1)
    beside("worker", "--queue", "cpu", env={"MISTUDIO_CPU_SLOTS": "1"})
    until(lambda: queue.worker_alive("cpu"))
    until(lambda: queue.nudges("cpu") == 0)  # it took the message, and found the pause
    assert in_state(job, "queued")()
    assert queue.resume_queue("cpu")
    until(in_state(job, "succeeded"))
