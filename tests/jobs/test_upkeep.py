"""Upkeep: the contract of its tasks, their schedules, and the tasks of the runner itself."""

from datetime import UTC, datetime, time, timedelta
from functools import partial

import pytest
from django.utils import timezone

from jobs.context import Context
from jobs.errors import Cancelled, InvalidInput
from jobs.kinds import upkeep as kind
from jobs.logs import log_path
from jobs.models import Job, Metric, Progress, Schedule
from jobs.queue import nudges, retry
from jobs.upkeep import history
from jobs.upkeep.schedules import make_schedules, start, start_due
from jobs.upkeep.task import Needless, Step, carry_out
from jobs.work import WorkerProcess

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


def run(task, dry_run=False):
    return kind.run(kind.Params(task, dry_run), Context(1, 1, kind.STAGES))


def figures(result):
    return result["counts"], result["bytes"], result["details"]


# ---- the contract


def test_a_dry_run_tells_the_figures_of_the_run_and_takes_no_step():
    taken = []
    steps = [Step(f"file {n}", "file removed", partial(taken.append, n), bytes=1000) for n in range(3)]
    dry = carry_out(steps, Context(), dry_run=True).result()
    assert taken == [] and dry["summary"] == "Would be: 3 files removed (3.0 kB)"
    real = carry_out(steps, Context(), dry_run=False).result()
    assert taken == [0, 1, 2] and figures(real) == figures(dry)


def test_a_step_that_is_no_longer_needed_is_not_counted_and_one_that_fails_does_not_end_the_others():
    def fails(error):
        raise error

    steps = [
        Step("cache 1", "cache evicted", lambda: fails(Needless("it is used by training 2"))),
        Step("cache 2", "cache evicted", lambda: fails(PermissionError(13, "Permission denied"))),
        Step("cache 3", "cache evicted", lambda: "its files were changed"),
    ]
    result = carry_out(steps, Context(), dry_run=False).result()
    assert result["counts"] == {"cache evicted": 1}
    assert result["kept"] == ["cache 1: it is used by training 2"]
    assert result["wrong"] == ["cache 2: Permission denied", "its files were changed"]
    assert result["summary"] == "1 cache evicted; 1 left alone; 2 to look at"


def test_a_run_that_is_cancelled_takes_no_further_step():
    taken, ctx = [], Context()

    def take():
        taken.append(1)
        ctx.wished = "cancel"

    with pytest.raises(Cancelled):
        carry_out([Step("one", "file removed", take)] * 3, ctx, dry_run=False)
    assert taken == [1]


def test_a_task_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(InvalidInput) as refused:
        start("tidying")
    assert "“tidying”" in refused.value.message and "lost_jobs" in refused.value.hint


# ---- schedules


def schedule(**fields):
    known = {"every": "daily", "at": time(3, 10), "weekday": 2}
    return Schedule(task="logs", **{**known, **fields})


@pytest.mark.parametrize(
    ("fields", "now", "then"),
    [
        ({}, (22, 3, 9), (22, 3, 10)),
        ({}, (22, 3, 10), (23, 3, 10)),
        ({"every": "hourly"}, (22, 3, 10), (22, 4, 10)),
        ({"every": "hourly"}, (22, 23, 59), (23, 0, 10)),
        ({"every": "weekly"}, (22, 12, 0), (25, 3, 10)),
        ({"every": "weekly"}, (25, 3, 10), (32, 3, 10)),
    ],
)
def test_the_next_run_is_the_next_time_that_the_schedule_names(fields, now, then):
    day, hour, minute = then
    expected = datetime(2026, 11, 1, hour, minute, tzinfo=UTC) + (day - 1) * DAY
    assert schedule(**fields).following(datetime(2026, 11, *now, tzinfo=UTC)) == expected


def due(task="logs", since=timedelta(minutes=1)):
    Schedule.objects.exclude(task=task).update(next_at=timezone.now() + DAY)
    Schedule.objects.filter(task=task).update(next_at=timezone.now() - since, enabled=True)
    return Schedule.objects.get(task=task)


def test_every_task_has_a_schedule_and_one_that_was_changed_stays_so(settings):
    assert set(Schedule.objects.values_list("task", flat=True)) == set(settings.UPKEEP)
    Schedule.objects.filter(task="logs").update(at=time(9, 30), enabled=False)
    Schedule.objects.filter(task="metrics").delete()
    make_schedules()
    assert Schedule.objects.filter(task="logs", at=time(9, 30), enabled=False).exists()
    assert Schedule.objects.filter(task="metrics", enabled=True, next_at__gt=timezone.now()).exists()


def test_what_was_missed_in_a_week_of_sleep_runs_once():
    due("lost_jobs", since=7 * DAY)
    (job,) = start_due()
    assert (job.kind, job.params, job.team, job.owner) == (
        *("upkeep", {"task": "lost_jobs", "dry_run": False}, None, None),
    )
    assert start_due() == []
    assert timezone.now() < Schedule.objects.get(task="lost_jobs").next_at <= timezone.now() + timedelta(hours=1)


def test_of_two_workers_that_find_it_due_one_starts_it(monkeypatch):
    as_the_other_found_it = due()
    assert len(start_due()) == 1
    monkeypatch.setattr("jobs.upkeep.schedules.schedules", lambda: Stale([as_the_other_found_it]))
    Job.objects.update(state="succeeded")  # even if the first is through already
    assert start_due() == []
    assert Job.objects.filter(kind="upkeep").count() == 1


class Stale(list):
    """What a query found a moment ago."""

    def filter(self, **_):
        return self


def test_what_is_off_or_no_task_any_more_is_never_due():
    due()
    Schedule.objects.filter(task="logs").update(enabled=False)
    Schedule.objects.create(task="of an older version", at=time(1))
    Schedule.objects.filter(task="of an older version").update(next_at=timezone.now() - DAY)
    assert start_due() == []


def test_a_worker_starts_what_is_due_but_not_while_it_wakes_up():
    due()
    worker = WorkerProcess("cpu")
    worker.round()
    assert not Job.objects.exists(), "others may not have written their heartbeats yet"
    worker.awake_since -= 1000
    worker.round()
    assert [job.subject for job in Job.objects.all()] == ["upkeep:logs"]


def test_a_task_has_one_unfinished_run_and_a_failed_one_can_be_tried_again():
    first, dry = start("logs"), start("logs", dry_run=True)
    assert start("logs").pk == first.pk != dry.pk, "a look must not keep the run from its turn"
    Job.objects.filter(pk=first.pk).update(state="failed")
    again = retry(Job.objects.get(pk=first.pk))
    assert (again.retry_of, again.params, again.team) == (first, first.params, None)


# ---- lost jobs


def test_lost_jobs_are_reported_by_a_dry_run_and_settled_by_a_run(row):
    job = row(heartbeat_at=timezone.now() - DAY, host="elsewhere/1/2")
    row("queued", queued_at=timezone.now() - DAY)
    dry = run("lost_jobs", dry_run=True)
    job.refresh_from_db()
    assert job.state == "running" and dry["counts"] == {"job settled": 1, "message sent again": 1}
    assert figures(run("lost_jobs")) == figures(dry)
    job.refresh_from_db()
    assert job.state == "queued" and nudges("cpu") == 2
    assert run("lost_jobs")["summary"] == "Nothing to do"


# ---- histories


@pytest.fixture
def ended(row):
    def make(days, state="succeeded", **fields):
        return row(state, finished_at=timezone.now() - days * DAY if state == "succeeded" else None, **fields)

    return make


def measure(job, steps):
    """A loss at each step, and now and then something that is rarely measured."""
    rows = [{"loss": 1 / s, **({"ce": float(s)} if s % 100 == 7 else {})} for s in range(1, steps + 1)]
    Metric.objects.bulk_create(Metric(job=job, step=s, values=values) for s, values in enumerate(rows, 1))


def test_old_metrics_are_thinned_evenly_and_keep_their_ends_and_what_is_rare(ended, monkeypatch):
    monkeypatch.setattr(history, "METRICS", 50)
    old, young, going_on = ended(40), ended(20), ended(40, "running")
    for job in (old, young, going_on):
        measure(job, 400)
    before = dict(Metric.objects.filter(job=old).values_list("step", "values"))
    dry = run("metrics", dry_run=True)
    assert Metric.objects.filter(job=old).count() == 400
    assert figures(run("metrics")) == figures(dry)
    after = dict(Metric.objects.filter(job=old).values_list("step", "values"))
    assert dry["counts"] == {"point removed": 400 - len(after)}
    assert {1, 400, 7, 107, 207, 307} <= after.keys() and 50 <= len(after) <= 56
    assert all(before[step] == values for step, values in after.items())
    gaps = [b - a for a, b in zip(sorted(after), sorted(after)[1:], strict=False)]
    assert max(gaps) <= 8, "of 400 steps 50 intervals"
    assert Metric.objects.exclude(job=old).count() == 800, "nothing of what ended lately, or goes on"
    assert run("metrics")["summary"] == "Nothing to do", "what was thinned is not thinned again"


def test_a_chart_of_thinned_metrics_ends_where_it_ended(ended, monkeypatch):
    monkeypatch.setattr(history, "METRICS", 50)
    job = ended(40, subject="training:1")
    measure(job, 400)
    last = Metric.history("training:1", at_most=30)[-1]
    run("metrics")
    points = Metric.history("training:1", at_most=30)
    assert points[-1] == last and len(points) >= 25
    assert all(values["loss"] == 1 / step for step, values in points)


def test_old_progress_is_thinned_and_keeps_its_ends(ended, monkeypatch):
    monkeypatch.setattr(history, "PROGRESS", 10)
    job, at = ended(40), timezone.now() - 41 * DAY
    Progress.objects.bulk_create(
        Progress(job=job, at=at + n * timedelta(minutes=1), percent=n, done=n) for n in range(90)
    )
    dry = run("progress", dry_run=True)
    assert job.progress_history.count() == 90
    assert figures(run("progress")) == figures(dry)
    left = list(job.progress_history.values_list("percent", flat=True))
    assert left[0] == 0 and left[-1] == 89 and len(left) <= 11


# ---- logs


def write_log(job, text):
    log_path(job).parent.mkdir(parents=True, exist_ok=True)
    log_path(job).write_text(text)
    return log_path(job)


def test_old_logs_go_and_those_of_unfinished_jobs_stay(ended):
    old, young, running = ended(91), ended(89), ended(91, "running")
    logs = [write_log(job, "said") for job in (old, young, running)]
    dry = run("logs", dry_run=True)
    assert dry["summary"] == "Would be: 1 log removed (4 bytes)" and all(path.exists() for path in logs)
    assert figures(run("logs")) == figures(dry)
    assert [path.exists() for path in logs] == [False, True, True]


def test_old_runs_of_upkeep_go_with_their_folders_and_the_last_of_each_stays(ended):
    first, last = (ended(days, kind="upkeep", subject="upkeep:logs") for days in (60, 50))
    for job in (first, last):
        write_log(job, "said")
    other = ended(60)
    dry = run("logs", dry_run=True)
    assert dry["counts"] == {"run removed": 1} and first.folder.exists()
    assert figures(run("logs")) == figures(dry)
    assert set(Job.objects.values_list("pk", flat=True)) == {last.pk, other.pk}
    assert not first.folder.exists() and last.folder.exists()
