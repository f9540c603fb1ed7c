"""What pages say of alerts, who may silence them, and what is known of workers."""

import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import AnonymousUser
from django.urls import reverse
from django.utils import timezone

from jobs import live
from jobs.models import Job, LiveEvent, State, Worker
from mistudio.models import Team, User
from monitoring.alerts import begin, end, look_around
from monitoring.models import Alert, Threshold
from monitoring.rules import rules
from tests.mistudio.test_monitor import host, text_of
from tests.mistudio.test_pages import queries

pytestmark = pytest.mark.django_db


@pytest.fixture
def staff(bob):
    User.objects.filter(pk=bob.pk).update(is_staff=True)
    return User.objects.get(pk=bob.pk)


def alert(rule="gpu-temperature", on="lab-01", thing="GPU 1", worst=91.0, ago=240, over=None):
    """An alert that was raised and seen so many seconds ago, and is over since `over` seconds."""
    now = timezone.now()
    begin((rule, on, thing), now - timedelta(seconds=ago), worst, now)
    made = Alert.objects.open().get(rule=rule, host=on, thing=thing)
    if over is not None:
        end(made, now - timedelta(seconds=over))
    return made


def test_the_monitor_says_what_is_wrong_since_when_how_bad_and_what_was(alice, client_of):
    host(gpus=2)
    alert()
    alert("disk", thing="/data", worst=8.2)
    alert("memory", thing="", worst=97.2, ago=960, over=780)
    text = text_of(client_of(alice).get("/monitor/"))
    said = r"GPU temperature, GPU 1 on lab-01 since [\w :]+, 4 min ago ; up to 91 °C; alert above 85 °C"
    assert re.search(said, text)
    assert "down to 8.2 GB; alert below 10 GB" in text
    assert re.search(r"Recovered 13 min ago : Memory in use on lab-01 , lasted 3 min 00 s, peak 97.2 %", text)
    assert "No alerts" not in text and "Silence for" not in text, "that is for staff"


def test_without_one_the_monitor_says_so_and_what_would_raise_one(alice, client_of):
    host()
    Threshold.objects.create(rule="gpu-temperature", limit=70, recovers=65, seconds=4)
    Threshold.objects.create(rule="memory", limit=95, recovers=90, on=False)
    text = text_of(client_of(alice).get("/monitor/"))
    assert "No alerts" in text
    assert "GPU temperature above 70 °C for 4.0 s at or below 65 °C for 4.0 s" in text
    assert "Memory in use never: turned off" in text
    assert "Free space for data below 10 GB for 10 s at or above 12 GB for 10 s" in text
    assert "No heartbeat for 1 min 00 s as soon as it is over" in text


def test_of_many_that_are_over_the_newest_are_shown_and_the_others_folded(alice, client_of):
    host()
    for ago in range(10, 60, 10):
        alert(thing=f"GPU {ago}", ago=100, over=ago)
    shown, _, folded = client_of(alice).get("/monitor/").content.decode().partition("<summary>2 more</summary>")
    assert all(f"GPU {ago}<" in shown for ago in (10, 20, 30)) and all(f"GPU {ago}<" in folded for ago in (40, 50))


def test_an_alert_leads_to_the_charts_of_its_host_where_there_are_any(alice, client_of):
    host("lab-01")
    alert()
    alert("worker-silent", on="only workers", thing="worker 1 of queue cpu")
    html = client_of(alice).get("/monitor/").content.decode()
    assert 'href="/monitor/?host=lab-01"' in html and "only workers" in html and "?host=only" not in html


def test_names_in_alerts_are_escaped(alice, client_of):
    host()
    alert(on="<script>alert(1)</script>", thing="<script>alert(2)</script>")
    alert(on="<script>alert(3)</script>", over=5)
    assert "<script>alert" not in client_of(alice).get("/monitor/").content.decode()


def test_every_header_shows_how_many_alerts_are_open_and_not_silenced(alice, client_of):
    client = client_of(alice)
    before = queries(client, "/templates/")
    assert "alert" not in live.render(f"shell.{alice.team.pk}")
    alert()
    alert(thing="GPU 0")
    alert("memory", thing="", over=5)
    Alert.objects.filter(thing="GPU 0").update(silenced_until=timezone.now() + timedelta(hours=1))
    assert "1 alert " in text_of(client.get("/templates/"))
    assert queries(client, "/templates/") == before
    Alert.objects.update(silenced_until=timezone.now() - timedelta(seconds=1))
    assert "2 alerts" in live.render(f"shell.{alice.team.pk}")


def test_the_headers_of_all_teams_are_told_when_an_alert_begins_and_ends(alice, charlie):
    shells = sorted(f"shell.{team.pk}" for team in Team.objects.all())
    made = alert()
    assert sorted(LiveEvent.objects.values_list("topic", flat=True)) == shells and len(shells) == 2
    LiveEvent.objects.all().delete()
    end(made, timezone.now())
    assert sorted(LiveEvent.objects.values_list("topic", flat=True)) == shells


# ---- silence


def url(made):
    return reverse("alert_silence", args=[made.pk])


def test_staff_silences_an_alert_for_a_while_and_ends_the_silence(staff, client_of):
    host()
    made, client = alert(), client_of(staff)
    assert "Silence for 1 h 24 h" in text_of(client.get("/monitor/"))
    page = "http://testserver/monitor/?host=lab-01&window=6h"
    answer = client.post(url(made), {"hours": "24"}, headers={"referer": page})
    assert answer.status_code == 302 and answer["Location"] == page
    made.refresh_from_db()
    assert made.silenced_by == staff
    assert 23.9 < (made.silenced_until - timezone.now()).total_seconds() / 3600 <= 24
    text = text_of(client.get("/monitor/"))
    assert re.search(r"Silenced until [\w :]+ by bob End the silence", text) and "1 alert " not in text
    client.post(url(made), {"hours": "0"})
    made.refresh_from_db()
    assert (made.silenced_until, made.silenced_by) == (None, None)
    assert LiveEvent.objects.filter(topic=f"shell.{staff.team.pk}").count() == 3, "begun, silenced, not silenced"


def test_nobody_else_does_and_not_for_ever(alice, staff, client, client_of):
    made = alert()
    assert client_of(alice).post(url(made), {"hours": "1"}).status_code == 403
    assert client.post(url(made), {"hours": "1"})["Location"].startswith("/login/")
    assert client_of(staff, enforce_csrf_checks=True).post(url(made), {"hours": "1"}).status_code == 403
    for hours in ("", "-1", "1000000", "x"):
        answer = client_of(staff).post(url(made), {"hours": hours}, headers={"referer": "https://elsewhere.example/"})
        assert answer["Location"] == "/monitor/", "and never to another site"
    assert client_of(staff).get(url(made)).status_code == 405
    end(made, timezone.now())
    assert client_of(staff).post(url(made), {"hours": "1"}).status_code == 404
    made.refresh_from_db()
    assert made.silenced_until is None


def test_only_staff_watches_the_fragment_with_the_buttons(alice, staff):
    alert()
    assert "<button" in live.render("alerts.staff.5") and "<button" not in live.render("alerts.member.5")
    assert live.allowed(staff, ["alerts.staff.5", "hosts.5"]) and live.allowed(alice, ["alerts.member.5", "hosts.5"])
    assert not live.allowed(AnonymousUser(), ["alerts.member.5"]) and not live.allowed(AnonymousUser(), ["hosts.5"])
    for bad in ("alerts.staff.5", "alerts.member.3", "alerts.member", "alerts", "alerts.nose.5", "hosts.3", "hosts"):
        assert not live.allowed(alice, [bad]), bad


# ---- administration


def test_an_administrator_sets_thresholds_and_forgets_a_host(client):
    client.force_login(User.objects.create_superuser("root"))
    form = {"rule": "disk", "on": "on", "limit": "500", "recovers": "510", "seconds": "0"}
    client.post(reverse("admin:monitoring_threshold_add"), form)
    assert (rules()["disk"].limit, rules()["disk"].seconds) == (500, 0)
    made = host("<b>gone</b>", ago=300)
    look_around(rules(), timezone.now())
    for page in ("threshold", "alert", "host"):
        assert "<b>gone" not in client.get(reverse(f"admin:monitoring_{page}_changelist")).content.decode()
    delete = reverse("admin:monitoring_host_delete", args=[made.pk])
    n = made.samples.count()
    assert f"Readings: {n}" in re.sub(r"\s+", " ", client.get(delete).content.decode()) and n > 60
    client.post(delete, {"post": "yes"})
    assert not type(made).objects.exists()


# ---- workers


def worker(queue, ago, pid=4711):
    beat = timezone.now() - timedelta(seconds=ago)
    return Worker.objects.create(host="lab-02/123/abc", pid=pid, queue=queue, slots=1, heartbeat_at=beat)


def waiting(team, queue, ago):
    Job.objects.create(
        team=team, kind="sleepy", queue=queue, state=State.QUEUED, queued_at=timezone.now() - timedelta(seconds=ago)
    )


def found():
    look_around(rules(), timezone.now())
    return [(one.rule, one.host, one.thing, round(one.worst)) for one in Alert.objects.open().order_by("rule")]


def test_jobs_that_wait_without_a_worker_raise_an_alert_until_one_comes(team):
    waiting(team, "gpu", 90)
    waiting(team, "cpu", 30)
    assert found() == [("no-worker", "", "queue gpu", 90)]
    worker("gpu", 0)
    assert found() == []
    assert Alert.objects.get().recovered_at


def test_a_job_that_waits_for_its_turn_raises_none(team):
    waiting(team, "gpu", 9000)
    worker("gpu", 3)
    assert found() == []
    Worker.objects.update(heartbeat_at=timezone.now() - timedelta(seconds=40))
    assert found() == [], "its worker is missed for 40 s, however long the job has waited"


def test_a_worker_whose_heartbeat_stopped_raises_an_alert_and_one_that_left_does_not():
    worker("cpu", 5, pid=1)
    gone = worker("cpu", 70, pid=2)
    assert found() == [("worker-silent", "lab-02", "worker 2 of queue cpu", 70)]
    gone.delete()
    Alert.objects.update(seen_at=timezone.now() - timedelta(minutes=6))
    assert found() == [] and Alert.objects.get().gone
