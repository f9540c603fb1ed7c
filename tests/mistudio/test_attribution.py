"""Whose the work of a host is, on the monitor page."""

import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from jobs import live
from jobs.models import Job, State
from mistudio import attribution, monitored
from mistudio.attribution import MOST_JOBS, extent, lanes, processes, runs
from mistudio.monitored import WINDOWS, look
from tests.mistudio.test_monitor import GIB, host, nothing_remembered, text_of

__all__ = ["nothing_remembered"]
pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)


def ago(minutes):
    return timezone.now() - timedelta(minutes=minutes)


def ran(team, *moves, name="lab-01", title="a job", **fields):
    """A job that went into these states so many minutes ago."""
    stamps = {State.RUNNING: "started_at", State.PAUSED: "paused_at", State.QUEUED: "queued_at"}
    job = Job.objects.create(team=team, kind="sleepy", queue="cpu", title=title, host=f"{name}/1/2", **fields)
    for state, minutes in moves:
        at, where = ago(minutes), {"host": name} if state == State.RUNNING else {}
        job.events.create(what=state, at=at, detail={"state": state, **where})
        Job.objects.filter(pk=job.pk).update(state=state, **{stamps.get(state, "finished_at"): at})
    job.refresh_from_db()
    return job


def minutes_of(found):
    def minutes(at):
        return round((timezone.now() - at).total_seconds() / 60) if at else None

    return [(minutes(run.since), minutes(run.until), run.state) for run in found]


# ---- which job ran when


def test_each_stretch_in_which_a_job_ran_is_there_with_how_it_ended(team):
    ran(team, ("queued", 50), ("running", 40), ("paused", 30), ("queued", 25), ("running", 20), ("succeeded", 10))
    ran(team, ("queued", 9), ("running", 8), ("queued", 6), ("running", 1))
    here = host()
    assert minutes_of(runs(here, ago(60))) == [
        (40, 30, "paused"), (20, 10, "succeeded"), (8, 6, "queued"), (1, None, "running"),
    ]  # fmt: skip


def test_what_ran_before_or_elsewhere_or_only_waited_is_not_there(team):
    here, at = host(), ago(60)
    ran(team, ("running", 90), ("succeeded", 70))
    ran(team, ("queued", 30), ("cancelled", 20))
    ran(team, ("running", 30), ("failed", 20), name="lab-01-b")
    job = ran(team, ("running", 40), ("queued", 30), name="elsewhere")
    job.events.create(what="started", at=ago(20), detail={"state": "running", "host": "lab-01"})
    Job.objects.filter(pk=job.pk).update(state="running", host="lab-01/3/4")
    long = ran(team, ("running", 500))
    assert [(run.job.pk, round((timezone.now() - run.since).total_seconds() / 60)) for run in runs(here, at)] == [
        (long.pk, 500),
        (job.pk, 20),
    ]


def test_jobs_that_ran_at_the_same_time_stand_in_different_lanes(team):
    ran(team, ("running", 50), ("succeeded", 30))
    ran(team, ("running", 40), ("succeeded", 20))
    ran(team, ("running", 29))
    found = lanes(look(host(), WINDOWS["1h"]), team.pk)
    assert [bar["y"] for bar in found["bars"]] == [0, attribution.HEIGHT, 0]


def test_bars_are_on_the_axis_of_the_charts_and_within_it(team):
    found = lanes(look(host(), WINDOWS["6h"]), team.pk)
    assert [(tick[0], tick[2]) for tick in found["ticks"]] == [
        ("0.00%", "−6 h"), ("33.33%", "−4"), ("66.67%", "−2"), ("100.00%", "0"),
    ]  # fmt: skip
    now = timezone.now()

    def edges(since, until):
        job = Job(team=team)
        return extent(
            attribution.Run(job, now - since, now - until if until is not None else None, "running"), now, HOUR
        )

    assert edges(HOUR / 2, HOUR / 4) == (50, 25)
    assert edges(3 * HOUR, HOUR / 2) == (0, 50)
    assert edges(HOUR / 4, None) == pytest.approx((75, 25))
    assert edges(-HOUR / 60, None) == (100 - attribution.NARROWEST, attribution.NARROWEST), "newer than the charts"


def test_a_job_is_named_linked_and_escaped_for_its_own_team_alone(alice, charlie, client_of):
    host()
    job = ran(alice.team, ("running", 40), ("failed", 10), title="<b>mine</b>")
    own = client_of(alice).get("/monitor/").content.decode()
    assert f'<a href="/jobs/{job.pk}/"><title>&lt;b&gt;mine&lt;/b&gt;: Failed, ' in own and "30 min 00 s" in own
    foreign = client_of(charlie).get("/monitor/").content.decode()
    assert "mine" not in foreign and f"/jobs/{job.pk}/" not in foreign
    assert foreign.count("a job of another team") == 1


def test_without_jobs_the_page_says_so(alice, client_of):
    host()
    text = text_of(client_of(alice).get("/monitor/?window=24h"))
    assert "No job ran here in the last 24 h." in text and "No job runs here now." in text


# ---- whose process


def working(team, owner=None, beat=0, **usage):
    made = ran(team, ("running", 10), owner=owner, pid=7, usage=usage, title="train it")
    Job.objects.filter(pk=made.pk).update(heartbeat_at=timezone.now() - timedelta(seconds=beat))
    return made


BUSY = [{"pid": 7, "cpu": 1.75, "memory": 2 * GIB, "gpu_memory": 69 * GIB}, {"pid": 8, "cpu": 0.5, "memory": GIB}]


def row_of(answer):
    section = answer.content.decode().split('id="attribution-processes"')[1]
    rows = re.findall(r"<tr>(.*?)</tr>", section.split("</table>")[0], re.DOTALL)[1:]
    return [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row)).strip() for row in rows]


def test_processes_are_shown_with_their_job_and_its_owner(alice, charlie, client_of):
    host()
    job = working(alice.team, owner=alice, processes=BUSY)
    kind = f"train it Sleep {job.pk} alice"
    assert row_of(client_of(alice).get("/monitor/")) == [
        f"{kind} 7 1.75 2.0 GiB 69.0 GiB",
        f"{kind} 8 0.50 1.0 GiB –",
    ]
    assert row_of(client_of(charlie).get("/monitor/")) == [
        "a job of another team – 7 1.75 2.0 GiB 69.0 GiB",
        "a job of another team – 8 0.50 1.0 GiB –",
    ]


def test_what_holds_gpu_memory_and_is_of_no_job_is_shown_as_such(alice, client_of):
    both = {"gpu.0.process.7.memory": 69 * GIB, "gpu.1.process.4711.memory": GIB}
    host(gpus=2, **both)
    working(alice.team, processes=BUSY)
    assert row_of(client_of(alice).get("/monitor/"))[2:] == ["not of a job – 4711 – – 70.0 GiB"], "on both GPUs"


def test_a_job_that_is_silent_or_was_not_measured_yet_has_a_process_without_figures(alice):
    seen = look(host(), WINDOWS["1h"])
    job = working(alice.team, beat=60, processes=BUSY)
    assert [row["process"] for row in processes(seen, alice.team.pk)["rows"]] == [{"pid": 7}]
    Job.objects.filter(pk=job.pk).update(heartbeat_at=timezone.now(), usage={})
    assert [row["process"] for row in processes(seen, alice.team.pk)["rows"]] == [{"pid": 7}]


def test_a_host_that_is_silent_shows_no_processes_as_if_they_were_of_now(alice):
    seen = look(host(gpus=1, ago=300), WINDOWS["1h"])
    assert processes(seen, alice.team.pk)["strangers"] == []


# ---- cost and live


def test_the_page_asks_as_much_for_many_jobs_as_for_one_and_shows_the_newest(alice, client_of):
    def queries():
        monitored.past.cache_clear()
        with CaptureQueriesContext(connection) as caught:
            answer = client.get("/monitor/")
        return len(caught), answer.content.decode()

    client = client_of(alice)
    host()
    working(alice.team, owner=alice, processes=BUSY)
    few, _ = queries()
    for n in range(MOST_JOBS):
        ran(alice.team, ("running", 30 - n / 2), ("succeeded", 29.7 - n / 2), owner=alice, title=f"job {n}")
    for _ in range(5):
        working(alice.team, owner=alice, processes=BUSY)
    many, page = queries()
    assert many == few <= 20
    assert (
        page.count("<title>job ") + page.count("<title>train it") == MOST_JOBS
        and f"the {MOST_JOBS} newest that ran in 1 h" in page
    )


def test_each_part_is_pushed_to_its_own_team_as_the_page_shows_it(alice, charlie, client_of):
    made = host()
    job = working(alice.team, owner=alice, processes=BUSY)
    page = client_of(alice).get("/monitor/?window=6h").content.decode()
    names = [f"attribution.{part}.{alice.team.pk}.6h.{made.pk}.2" for part in ("lanes", "processes")]
    assert live.allowed(alice, names) and not live.allowed(charlie, names[:1])
    for name in names:
        assert f"&amp;t={name}" in page
        assert live.render(name).strip() in page and f"/jobs/{job.pk}/" in page
    others = f"attribution.lanes.{charlie.team.pk}.6h.{made.pk}.2"
    assert live.allowed(charlie, [others]) and "train it" not in live.render(others)
    team = alice.team.pk
    for bad in ("lanes", f"lanes.{team}", f"lanes.{team}.2h.{made.pk}.2", f"nose.{team}.1h.{made.pk}.2",
                f"lanes.{team}.1h.999.2", f"lanes.{team}.1h.x.2", f"lanes.{team}.1h.{made.pk}",
                f"lanes.{team}.1h.{made.pk}.3", f"lanes.{team}.1h.{made.pk}.2.2"):  # fmt: skip
        assert not live.allowed(alice, [f"attribution.{bad}"]), bad
