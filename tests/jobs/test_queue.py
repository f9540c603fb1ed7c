from datetime import timedelta

import pytest
from django.utils import timezone

from jobs import queue
from jobs.errors import InvalidInput
from jobs.models import Job, State, Worker

pytestmark = pytest.mark.django_db


def test_a_job_waits_with_its_validated_parameters_and_a_message(sleepy, alice):
    job = sleepy(owner=alice, steps=3)
    assert (job.state, job.queue, job.title) == ("queued", "cpu", "Sleep")
    assert job.params["steps"] == 3 and job.params["seconds"] == 0.01, "defaults are written down too"
    assert queue.nudges("cpu") == 1 and queue.nudges("gpu") == 0


def test_the_message_carries_nothing_but_the_queue(sleepy):
    from django_q.models import OrmQ

    sleepy()
    message = OrmQ.objects.get().task
    assert (message["func"], message["args"], message["kwargs"]) == ("jobs.supervise.work", ("cpu",), {})
    assert OrmQ.objects.get().key == "cpu"


def test_the_same_subject_twice_is_one_job_until_it_ends(sleepy):
    first = sleepy(subject="thing:1")
    assert sleepy(subject="thing:1", steps=99).pk == first.pk
    assert sleepy(subject="thing:2").pk != first.pk
    first.move(State.CANCELLED)
    assert sleepy(subject="thing:1").pk != first.pk


def test_jobs_without_a_subject_are_all_their_own(sleepy):
    assert sleepy().pk != sleepy().pk


@pytest.mark.parametrize(
    ("kind", "params", "words"),
    [
        ("nonsense", {}, "no kind of job “nonsense”"),
        ("sleepy", {"stepz": 3}, "Unknown parameter stepz"),
        ("sleepy", {"then": "explode"}, "then: 'explode' is none of"),
        ("sleepy", {"steps": 0}, "steps: 0 is not from 1"),
    ],
)
def test_wrong_input_makes_no_job(team, kind, params, words):
    with pytest.raises(InvalidInput, match=words):
        queue.submit(kind, params, team=team, owner=None)
    assert not Job.objects.exists()


def test_a_missing_parameter_is_wrong_input(team):
    with pytest.raises(InvalidInput, match="folder"):
        queue.submit("add_model", {"source": "gpt2"}, team=team, owner=None)


def test_cancelling_what_waits_or_rests_ends_it_at_once(row):
    for state in ("queued", "paused"):
        job = row(state)
        assert queue.request_cancel(job)
        assert Job.objects.get(pk=job.pk).state == State.CANCELLED


def test_cancelling_a_job_that_was_claimed_in_this_moment_becomes_a_wish(row):
    stale = row("queued")
    Job.objects.get(pk=stale.pk).move(State.RUNNING, attempt=1)
    assert queue.request_cancel(stale)
    fresh = Job.objects.get(pk=stale.pk)
    assert fresh.state == State.RUNNING and fresh.wish == "cancel"


def test_a_wish_is_noted_once_however_often_it_is_wished(row):
    job = row("running")
    assert queue.request_pause(job) and queue.request_pause(job)
    assert [event.what for event in job.events.all()] == ["pause requested"]


def test_wishes_for_what_has_ended_change_nothing(row):
    job = row("succeeded")
    assert not queue.request_cancel(job)
    assert not queue.request_pause(job) and not queue.request_finish(job) and not queue.resume(job)
    assert not job.events.exists()


def test_a_kind_that_cannot_go_on_later_cannot_be_paused_nor_finished_early(row, monkeypatch):
    from jobs.kinds import sleepy

    monkeypatch.setattr(sleepy, "RESUMABLE", False)
    monkeypatch.setattr(sleepy, "FINISH_EARLY", False)
    job = row("running")
    with pytest.raises(InvalidInput, match="cannot be paused"):
        queue.request_pause(job)
    with pytest.raises(InvalidInput, match="cannot finish early"):
        queue.request_finish(job)
    assert not job.can_pause and not job.can_finish_early and job.can_cancel


def test_resuming_sends_a_new_message(row):
    job = row("paused")
    assert queue.resume(job)
    assert queue.nudges("cpu") == 1 and Job.objects.get(pk=job.pk).state == State.QUEUED


def test_what_was_deleted_is_not_made_again_by_a_retry(sleepy):
    job = sleepy(subject="scan:12")
    queue.request_cancel(job)
    with pytest.raises(InvalidInput, match="was deleted"):
        queue.retry(job)


def test_a_retry_is_a_new_job_with_the_same_parameters_but_for_the_overrides(sleepy, settings):
    settings.SUBJECT_URL = ""
    job = sleepy(steps=7, batch=8, subject="thing:1")
    with pytest.raises(InvalidInput, match="not finished"):
        queue.retry(job)
    queue.request_cancel(job)
    again = queue.retry(job, {"batch": 4})
    assert again.retry_of == job and again.subject == job.subject
    assert again.params == {**job.params, "batch": 4} and job.params["batch"] == 8
    with pytest.raises(InvalidInput, match="Unknown parameter"):
        queue.retry(job, {"size": 1})


def test_a_worker_lives_as_long_as_its_heartbeat_is_fresh(db):
    Worker.objects.create(host="here", pid=1, queue="cpu", slots=2)
    assert queue.worker_alive("cpu") and queue.worker_alive() and not queue.worker_alive("gpu")
    Worker.objects.update(heartbeat_at=timezone.now() - timedelta(seconds=30))
    assert not queue.worker_alive("cpu")


def test_messages_signed_with_another_key_count_for_nothing_and_are_dropped(sleepy, monkeypatch):
    from django_q.conf import Conf
    from django_q.models import OrmQ

    sleepy()
    monkeypatch.setattr(Conf, "SECRET_KEY", "another key")
    assert queue.nudges("cpu") == 0
    queue.drop_old_messages("cpu")
    assert not OrmQ.objects.exists()


def test_messages_that_a_killed_cluster_had_taken_are_dropped_and_those_of_another_queue_stay(sleepy):
    from django_q.models import OrmQ

    sleepy(), sleepy()
    taken = OrmQ.objects.first()
    OrmQ.objects.filter(pk=taken.pk).update(lock=timezone.now() + timedelta(days=60))
    queue.drop_old_messages("gpu")
    assert OrmQ.objects.count() == 2 and queue.nudges("cpu") == 1
    queue.drop_old_messages("cpu")
    assert OrmQ.objects.count() == queue.nudges("cpu") == 1


def test_a_message_of_an_earlier_version_counts_for_nothing(sleepy):
    from django_q.tasks import async_task

    async_task("jobs.supervise.work", 12, cluster="cpu")
    assert queue.nudges("cpu") == 0
    queue.drop_old_messages("cpu")
    sleepy()
    assert queue.nudges("cpu") == 1
