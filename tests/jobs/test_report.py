import time

import pytest
from django.db import DatabaseError

from jobs import report
from jobs.context import Context
from jobs.models import Job, LiveEvent, Metric, Progress
from jobs.report import Reporter

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def ctx():
    return Context(stages={"all": 1.0})


@pytest.fixture
def reporting(row, ctx):
    """A reporter on its thread, stopped at the end."""
    started = []

    def start(**fields):
        job = row("running", **fields)
        started.append(Reporter(job, ctx))
        started[-1].start()
        return job, started[-1]

    yield start
    for one in started:
        one.stop()


def test_the_last_word_is_never_swallowed(reporting, ctx):
    job, reporter = reporting()
    ctx.stage("all", total=1000, unit="tokens")
    for _ in range(1000):
        ctx.advance()
    reporter.stop()
    job.refresh_from_db()
    assert (job.done, job.total, job.unit, job.stage) == (1000, 1000, "tokens", "all")


def test_the_last_word_before_a_silence_arrives_by_itself(reporting, ctx):
    job, _ = reporting()
    ctx.stage("all", total=10)
    ctx.advance(3)
    deadline = time.monotonic() + 60
    while Job.objects.get(pk=job.pk).done != 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_there_are_about_ten_writes_a_second_at_most(reporting, ctx, monkeypatch):
    writes = []
    original = Reporter.write
    monkeypatch.setattr(Reporter, "write", lambda self, *args: writes.append(1) or original(self, *args))
    _, reporter = reporting()
    ctx.stage("all", total=10**9)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        ctx.advance()
    reporter.stop()
    assert 2 <= len(writes) <= 12


def test_every_write_is_told_to_the_pages(reporting, ctx):
    job, reporter = reporting()
    ctx.stage("all")
    reporter.stop()
    assert LiveEvent.objects.filter(topic=f"jobs.{job.pk}").exists()


def test_metrics_are_written_once_a_step_and_measured_again_replaced(reporting, ctx):
    job, reporter = reporting()
    Metric.objects.create(job=job, step=2, values={"loss": 99.0})
    ctx.metric(1, loss=3.0)
    ctx.metric(2, loss=2.0)
    ctx.metric(2, l0=5.0)
    reporter.stop()
    assert list(job.metrics.values_list("step", "values")) == [(1, {"loss": 3.0}), (2, {"loss": 2.0, "l0": 5.0})]


def test_a_step_measured_in_two_parts_keeps_both_across_writes(row, ctx):
    job = row("running")
    reporter = Reporter(job, ctx)
    ctx.metric(7, loss=1.0)
    reporter.flush(True)
    ctx.metric(7, l0=2.0)
    reporter.flush(True)
    assert job.metrics.get().values == {"loss": 1.0, "l0": 2.0}


def test_history_keeps_a_point_every_five_percent(row, ctx):
    job = row("running")
    reporter = Reporter(job, ctx)
    ctx.stage("all", total=100)
    for _ in range(100):
        ctx.advance()
        reporter.flush(True)
    points = list(Progress.objects.values_list("percent", flat=True))
    assert len(points) == 20 - 1 + (points[-1] >= 99)
    assert all(4.9 < b - a < 6 for a, b in zip(points, points[1:], strict=False))


def test_history_keeps_a_point_every_minute_of_a_slow_job(row, ctx, monkeypatch):
    reporter = Reporter(row("running"), ctx)
    ctx.stage("all", total=10_000)
    start = time.monotonic()
    for minute in range(1, 4):
        monkeypatch.setattr(report.time, "monotonic", lambda minute=minute: start + 61 * minute)
        ctx.advance()
        reporter.flush(True)
    assert Progress.objects.count() == 3


def test_a_job_given_to_another_attempt_hears_stop_and_writes_nothing_more(reporting, ctx):
    job, reporter = reporting()
    Job.objects.filter(pk=job.pk).update(attempt=2)
    ctx.stage("all", total=10)
    ctx.advance(5)
    reporter.join(5)
    assert reporter.lost and ctx.wish() == "stop"
    assert Job.objects.get(pk=job.pk).done == 0


def test_a_silent_job_notices_too_that_it_is_not_its_own_any_more(row, ctx):
    reporter = Reporter(row("cancelled"), ctx)
    reporter.flush(changed=False)
    assert reporter.lost


def test_a_database_that_is_away_loses_nothing(row, ctx, monkeypatch):
    job = row("running")
    reporter = Reporter(job, ctx)
    ctx.stage("all", total=10)
    ctx.metric(1, loss=1.0)
    ctx.advance(4)

    def away(*args):
        raise DatabaseError("server closed the connection unexpectedly")

    reporter.over.wait = lambda seconds: None  # do not sleep
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "write", away)
        reporter.flush(True)
    assert ctx.changed.is_set(), "it will be tried again"
    reporter.flush(True)
    job.refresh_from_db()
    assert job.done == 4 and job.metrics.get().values == {"loss": 1.0}
