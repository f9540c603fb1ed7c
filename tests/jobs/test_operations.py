import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from jobs import live, tail
from jobs.models import Job, LiveEvent, QueuePause, Worker
from jobs.models.worker import FRESH
from jobs.queue import pause_queue, resume_queue
from jobs.queues import standings
from tests.jobs.test_views import text
from tests.mistudio.test_pages import queries

pytestmark = pytest.mark.django_db
HOST = "lab-01/1/2"


def ago(**past):
    return timezone.now() - timedelta(**past)


@pytest.fixture
def worker():
    def make(queue="cpu", slots=2, **fields):
        return Worker.objects.create(
            **{"host": HOST, "pid": Worker.objects.count(), **fields}, queue=queue, slots=slots
        )

    return make


@pytest.fixture
def runs(row):
    def make(title, **fields):
        return row("running", title=title, **{"host": HOST, "started_at": ago(minutes=1), **fields})

    return make


@pytest.fixture
def failed(row):
    def make(title="broke", **fields):
        known = {"finished_at": ago(hours=1), "error_code": "NETWORK", "error_message": "refused", "stage": "fetch"}
        return row("failed", title=title, **{**known, **fields})

    return make


def section(reply, name):
    """The text of the section with this heading."""
    html = reply.content.decode()
    return text_of(re.search(rf'<section[^>]*aria-labelledby="h-{name}".*?</section>', html, re.DOTALL)[0])


def text_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


# ---- what it shows


def test_everything_active_is_there_with_stage_percent_rate_time_left_owner_and_device(
    client_of, alice, bob, row, runs
):
    fields = {"percent": 42.0, "stage": "sleep", "rate": 1200.0, "unit": "steps", "eta_seconds": 75}
    runs("my run", owner=alice, queue="gpu", devices=["0", "1"], **fields)
    row("queued", title="my turn", owner=bob)
    row("paused", title="my rest", percent=7.0, paused_at=ago(minutes=2))
    row("succeeded", title="all done")
    reply = client_of(alice).get("/operations/")
    shown = section(reply, "running")
    for part in ("my run", "alice", "Running", "42.0 %", "Sleep, stage", "1 min 15 s", "1.20 k steps/s", "GPU 0, 1"):
        assert part in shown, part
    assert "my turn" in section(reply, "waiting") and "bob" in section(reply, "waiting")
    assert "my rest" in section(reply, "paused") and "all done" not in text(reply)


def test_each_that_waits_says_for_what(client_of, alice, row, runs, worker):
    for n in range(2):
        row("queued", title=f"turn {n}", queue="gpu", owner=alice)
    client = client_of(alice)
    assert "turn 0 Sleep" in section(client.get("/operations/"), "waiting")
    assert section(client.get("/operations/"), "waiting").count("a worker of the gpu queue") == 2
    worker("gpu", slots=1, devices=["0"])
    shown = section(client.get("/operations/"), "waiting")
    assert "nothing, it starts in a moment" in shown and "the next free GPU " in shown
    runs("the taker", queue="gpu", devices=["0"])
    shown = section(client.get("/operations/"), "waiting")
    assert "the next free GPU: the taker on GPU 0" in shown and "1 job before it" in shown
    pause_queue("gpu", by=alice, reason="a <new> driver")
    reply = client.get("/operations/")
    assert section(reply, "waiting").count("the gpu queue is paused") == 2
    assert "The gpu queue is paused by alice since" in text(reply) and "a &lt;new&gt; driver" in text(reply)
    assert "1 job still runs. 2 wait." in text(reply)


def test_waiting_jobs_stand_in_the_order_in_which_they_start(client_of, alice, bob, row):
    for n, (title, owner) in enumerate([("a1", alice), ("a2", alice), ("a3", alice), ("b1", bob)]):
        row("queued", title=title, owner=owner, queued_at=ago(minutes=9 - n))

    def shown():
        return re.findall(r"<bdi>(\w\d)</bdi>", client.get("/operations/").content.decode())

    client = client_of(alice)
    assert shown() == ["a1", "b1", "a2", "a3"]
    last = Job.objects.get(title="a3")
    client.post(reverse("job_order", args=[last.pk]), {"place": "first"})
    assert shown() == ["a3", "b1", "a1", "a2"]
    assert last.events.get().detail["by"] == "alice" and "by alice" in text(client.get(last.get_absolute_url()))
    client.post(reverse("job_order", args=[last.pk]), {"place": "normal"})
    assert shown() == ["a1", "b1", "a2", "a3"]
    reply = client.post(reverse("job_order", args=[last.pk]), {"place": "nowhere"}, follow=True)
    assert "There is no place “nowhere”." in text(reply)


def test_every_device_and_slot_shows_the_job_on_it(client_of, alice, charlie, runs, worker):
    worker("gpu", slots=3, devices=["0", "1"])
    worker("cpu", slots=2)
    runs("on both", queue="gpu", devices=["0", "1"], percent=10)
    runs("beside it", queue="gpu", devices=["0"])
    foreign = runs("secret", queue="cpu")
    Job.objects.filter(pk=foreign.pk).update(team=charlie.team)
    runs("on another host", queue="cpu", host="lab-02/1/2")
    reply = client_of(alice).get("/operations/")
    shown = section(reply, "places")
    assert "gpu: 2 of 3 slots in use · cpu: 2 of 2 slots in use" in shown
    assert re.search(r"GPU 0 lab-01 on both 10 % .*beside it .*GPU 1 lab-01 on both", shown)
    assert re.search(r"CPU slot 1 lab-01 A job of another team CPU slot 2 lab-01 Free", shown)
    assert "secret" not in text(reply)


def test_a_slot_more_than_a_worker_has_is_shown_when_a_job_is_on_it(runs, worker):
    worker("cpu", slots=1)
    runs("by a worker"), runs("by a command")
    (cpu,) = [standing for standing in standings() if standing.name == "cpu"]
    assert [[str(job) for job in place.jobs] for place in cpu.places()] == [["by a worker"], ["by a command"]]
    assert cpu.free == 0


def test_an_empty_page_says_what_will_be_here(client_of, alice):
    assert "Nothing runs or waits" in text(client_of(alice).get("/operations/"))


def test_another_teams_jobs_count_before_ones_own_but_are_not_named(client_of, alice, charlie, row):
    first = row("queued", title="secret", queued_at=ago(minutes=5))
    Job.objects.filter(pk=first.pk).update(team=charlie.team)
    row("queued", title="mine", owner=alice, queued_at=ago(minutes=1))
    Worker.objects.create(host=HOST, pid=1, queue="cpu", slots=1)
    shown = section(client_of(alice).get("/operations/"), "waiting")
    assert "cpu&nbsp;2 mine" in shown and "secret" not in shown


# ---- failures


def test_failures_of_a_week_say_why_and_what_helps_with_one_click(client_of, alice, failed, row):
    job = failed(error_hint="Try later.", suggestion={"label": "Retry with batch 4", "overrides": {"batch": 4}})
    failed("too old", finished_at=ago(days=8))
    row("succeeded", title="again", retry_of=failed("retried"))
    reply = client_of(alice).get("/operations/")
    shown = section(reply, "failed")
    for part in ("broke", "Network", "in stage fetch", "refused", "Try later.", "Retry with batch 4", "1 in 7 days"):
        assert part in shown, part
    assert "too old" not in shown and "retried" not in shown
    assert reply.content.decode().count(f'action="{reverse("job_retry", args=[job.pk])}"') == 1
    address = reverse("operations")
    back = client_of(alice).post(reverse("job_retry", args=[job.pk]), {"suggested": "1", "next": address})
    assert back.url == address and job.retries.get().params["batch"] == 4


def test_a_dismissed_failure_is_gone_until_it_is_put_back(client_of, alice, bob, failed):
    job, client = failed(), client_of(alice)
    client.post(reverse("job_dismiss", args=[job.pk]))
    assert "broke" not in text(client_of(bob).get("/operations/")) and "broke" not in text(client_of(bob).get("/"))
    assert "1 of the last 7 days" in text(client.get("/operations/"))
    shown = section(client.get("/operations/?dismissed=1"), "dismissed")
    assert "broke" in shown and "Put back" in shown
    client.post(reverse("job_dismiss", args=[job.pk]), {"back": "1"})
    assert "broke" in section(client.get("/operations/"), "failed")
    assert [event.what for event in job.events.all()] == ["dismissed", "put back"]


def test_all_failures_of_the_own_team_are_dismissed_at_once(client_of, alice, charlie, failed):
    failed("one"), failed("two")
    theirs = failed("theirs")
    Job.objects.filter(pk=theirs.pk).update(team=charlie.team)
    assert "2 failures dismissed" in text(client_of(alice).post(reverse("failures_dismiss"), follow=True))
    assert list(Job.objects.filter(dismissed_at=None)) == [theirs]


# ---- pausing a queue


def test_staff_pauses_and_resumes_a_queue_and_everybody_sees_it(client_of, alice, bob, row):
    alice.is_staff = True
    alice.save()
    row("queued")
    client, member = client_of(alice), client_of(bob)
    reply = client.post(reverse("queue_pause", args=["cpu"]), {"reason": "moving"}, follow=True)
    assert "The cpu queue is paused. What runs goes on to its end." in text(reply)
    assert "Resume cpu queue" in text(reply) and "Pause gpu queue" in text(reply)
    assert "cpu paused" in text(member.get("/models/")), "the head of every page says so"
    seen = text(member.get("/operations/"))
    assert "paused by alice" in seen and "moving" in seen and "Resume cpu queue" not in seen
    assert "starts jobs again" in text(client.post(reverse("queue_resume", args=["cpu"]), follow=True))
    assert not QueuePause.objects.exists() and "cpu paused" not in text(member.get("/models/"))


@pytest.mark.parametrize("address", ["queue_pause", "queue_resume"])
def test_a_queue_is_paused_and_resumed_by_staff_alone(client_of, alice, address):
    pause_queue("gpu")
    assert client_of(alice).post(reverse(address, args=["cpu"])).status_code == 404
    assert client_of(alice).post(reverse(address, args=["gpu"])).status_code == 404
    alice.is_staff = True
    alice.save()
    assert client_of(alice).post(reverse(address, args=["nonsense"])).status_code == 404
    assert client_of(alice, enforce_csrf_checks=True).post(reverse(address, args=["cpu"])).status_code == 403
    assert [pause.queue for pause in QueuePause.objects.all()] == ["gpu"]


def test_a_pause_and_its_end_are_told_to_teams_without_jobs_in_the_queue(team, charlie):
    headers = {f"shell.{key}" for key in (team.pk, charlie.team.pk)}
    for act in (pause_queue, resume_queue):
        LiveEvent.objects.all().delete()
        act("gpu")
        assert set(LiveEvent.objects.values_list("topic", flat=True)) == headers


def test_a_worker_that_comes_or_goes_is_told_to_every_team_and_its_heartbeats_to_none(team, charlie, worker):
    def told(act):
        LiveEvent.objects.all().delete()
        act()
        return set(LiveEvent.objects.values_list("topic", flat=True))

    headers, made = {f"shell.{key}" for key in (team.pk, charlie.team.pk)}, []
    assert "No worker" in live.render(f"shell.{team.pk}")
    assert told(lambda: made.append(worker())) == headers and "No worker" not in live.render(f"shell.{team.pk}")
    assert told(made[0].save) == set()
    assert told(Worker.objects.all().delete) == headers


def test_a_pause_is_told_to_open_pages(row):
    job = row("queued")
    before = live.render(f"shell.{job.team_id}")
    LiveEvent.objects.all().delete()
    pause_queue("cpu")
    assert LiveEvent.objects.filter(topic=f"shell.{job.team_id}").exists()
    after = live.render(f"shell.{job.team_id}")
    numbers = [re.search(r'data-event="([\d.]+)"', html)[1] for html in (before, after)]
    assert numbers[0] != numbers[1], "pages that follow fetch themselves anew"
    assert "The cpu queue is paused" in live.render(f"operations.{job.team_id}")


# ---- cost


def test_teams_that_are_told_at_a_time_share_how_the_queues_stand_and_no_more(team, charlie, row):
    def asked(*names):
        with CaptureQueriesContext(connection) as caught:
            return list(tail.render_all(list(names)).values()), len(caught)

    row("queued")
    names = [f"operations.{key}" for key in (team.pk, charlie.team.pk)]
    (ours, n), (theirs, m), (both, shared) = asked(names[0]), asked(names[1]), asked(*names)
    assert both == ours + theirs and shared == n + m - 8, "four of the queues, four of what waits in them"
    pause_queue("cpu")
    assert "is paused" in live.render(names[0]), "nothing is remembered"


def test_the_page_asks_as_much_for_many_jobs_as_for_one_and_stays_small(client_of, alice, team, row, failed, worker):
    worker("cpu"), worker("gpu", devices=["0"])
    client = client_of(alice)
    for state in ("running", "queued", "paused"):
        row(state, owner=alice), row(state, owner=alice, queue="gpu")
    failed()
    few = queries(client, "/operations/")
    known = {"team": team, "owner": alice, "kind": "sleepy", "title": "a job", "finished_at": timezone.now()}
    Job.objects.bulk_create(
        Job(state=state, queue=queue, **known)
        for state in ("running", "queued", "paused", "failed")
        for queue in ("cpu", "gpu")
        for _ in range(60)
    )
    assert queries(client, "/operations/") == few <= 40
    html = live.render(f"operations.{team.pk}")
    assert html.count('id="job-row-') == 90 and html.count("is-fail") == 6


def test_a_header_looks_again_for_workers_of_which_nobody_tells(team):
    every = live.topics()["shell"].old_after(live.render(f"shell.{team.pk}"))
    assert every == FRESH.total_seconds(), "a worker that is killed says nothing"
