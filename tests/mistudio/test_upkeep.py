"""The tasks of upkeep that know the domain, their page and their command."""

import json
import os
import time
from datetime import timedelta
from io import StringIO

import pytest
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from jobs.context import Context
from jobs.kinds import upkeep as kind
from jobs.ml.store import sha256, write_json, write_manifest
from jobs.models import Job, Schedule
from jobs.upkeep.schedules import start
from mistudio.models import ActivationCache, Training
from mistudio.upkeep import checksums
from monitoring.history import record
from monitoring.models import Host, Sample
from tests import rows
from tests.conftest import ROOT
from tests.files import contents, flip

pytestmark = pytest.mark.django_db
DAY = 24 * 3600


def run(task, dry_run=False):
    return kind.run(kind.Params(task, dry_run), Context(1, 1, kind.STAGES))


def figures(result):
    return result["counts"], result["bytes"], result["details"]


def age(path, days=2.0):
    """As if nothing in it had been written for so long."""
    at = time.time() - days * DAY
    for one in (*path.rglob("*"), path):
        os.utime(one, (at, at))


def job_of(training, state):
    job = Job.objects.create(team=training.team, kind="train_sae", queue="gpu", subject=training.subject, state=state)
    type(training).objects.filter(pk=training.pk).update(job=job)
    return job


# ---- checkpoints


def checkpoint(training, step, days=2.0):
    path = training.folder / "checkpoints" / f"step-{step:09d}"
    path.mkdir(parents=True)
    (path / "sae-0.safetensors").write_bytes(b"weights" * step)
    write_json(path / "state.json", {"step": step, "sha256": [sha256(path / "sae-0.safetensors")]})
    age(path, days)
    return path


def left(training):
    return sorted(path.name for path in (training.folder / "checkpoints").iterdir())


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_of_a_training_that_ended_without_success_the_last_checkpoint_stays(team, state):
    training = rows.training(team)
    job_of(training, state)
    old, last = checkpoint(training, 10), checkpoint(training, 20)
    (last.parent / ".step-000000030.0a1b.tmp").mkdir()
    age(last.parent / ".step-000000030.0a1b.tmp")
    n_bytes = sum(len(content) for content in contents(old).values())
    dry = run("checkpoints", dry_run=True)
    assert len(left(training)) == 3 and dry["counts"] == {"checkpoint removed": 2} and dry["bytes"] == n_bytes
    assert figures(run("checkpoints")) == figures(dry)
    assert left(training) == [last.name]


def test_a_training_that_succeeded_once_and_failed_when_it_was_tried_again_keeps_its_last_checkpoint(team):
    training = rows.training(team)
    Training.objects.filter(pk=training.pk).update(ready_at=timezone.now())
    job_of(training, "failed")
    checkpoint(training, 10)
    last = checkpoint(training, 20)
    run("checkpoints")
    assert left(training) == [last.name]


@pytest.mark.parametrize("state", ["queued", "running", "paused"])
def test_no_checkpoint_of_a_training_that_may_go_on_is_touched(team, state):
    training = rows.training(team)
    job_of(training, state)
    checkpoint(training, 10), checkpoint(training, 20)
    assert run("checkpoints")["summary"] == "Nothing to do" and len(left(training)) == 2


def test_a_checkpoint_stays_when_the_last_is_damaged_and_while_it_is_young(team):
    torn, fresh = rows.training(team, "torn"), rows.training(team, "fresh")
    for training in (torn, fresh):
        job_of(training, "failed")
        checkpoint(training, 10, days=2 if training is torn else 0.5)
    flip(checkpoint(torn, 20) / "sae-0.safetensors")
    checkpoint(fresh, 20)
    result = run("checkpoints")
    assert result["counts"] == {} and len(left(torn)) == len(left(fresh)) == 2
    assert result["kept"] == [
        f"step-000000010 of “torn” ({torn.pk}): step-000000020 is damaged, so a retry may need it"
    ]


def test_a_training_that_is_tried_again_in_between_keeps_its_checkpoints(team):
    from mistudio.upkeep.checkpoints import task

    training = rows.training(team)
    job_of(training, "failed")
    checkpoint(training, 10), checkpoint(training, 20)
    (step,) = task.steps(Context())
    job_of(training, "queued")
    with pytest.raises(Exception, match="the training goes on"):
        step.take()
    assert len(left(training)) == 2


def test_what_is_left_of_a_training_that_succeeded_goes(team):
    training = rows.training(team, ready_at=timezone.now())
    job_of(training, "succeeded")
    checkpoint(training, 10)
    assert run("checkpoints")["counts"] == {"checkpoint removed": 1} and left(training) == []


# ---- folders without a row, rows without a folder


@pytest.fixture
def stray(team, settings):
    """A folder of a training that is older than the newest row, and has none."""

    def make(days=2.0):
        gone, newest = rows.training(team, "gone"), rows.training(team, "newest")
        folder = gone.folder
        (folder / "sae").mkdir(parents=True)
        (folder / "sae" / "weights").write_bytes(b"x" * 500)
        newest.folder.mkdir()
        gone.delete()
        age(folder, days)
        age(newest.folder)
        return folder

    return make


def test_a_folder_without_a_row_is_removed_after_a_day(stray, settings):
    folder = stray()
    dry = run("orphans", dry_run=True)
    assert folder.exists() and dry["summary"] == "Would be: 1 folder removed (500 bytes)"
    assert figures(run("orphans")) == figures(dry)
    assert not folder.exists()
    assert [path.name for path in folder.parent.iterdir()] == [str(int(folder.name) + 1)], "that of the row stays"


def test_a_young_folder_stays_and_one_in_which_something_was_just_written(stray):
    folder = stray()
    (folder / "sae" / "weights").write_bytes(b"y" * 500)
    os.utime(folder, (0, 0))
    os.utime(folder / "sae", (0, 0))
    assert run("orphans")["summary"] == "Nothing to do" and folder.exists()


@pytest.mark.parametrize("state", ["queued", "running", "paused"])
def test_a_folder_that_an_unfinished_job_may_write_stays(stray, team, state):
    folder = stray()
    params = {"saes": [{"folder": f"{folder}/sae"}]}
    Job.objects.create(team=team, kind="train_sae", queue="gpu", state=state, params=params)
    assert run("orphans")["summary"] == "Nothing to do" and folder.exists()


def test_a_folder_newer_than_all_rows_is_left_and_told(team, settings):
    newest = rows.training(team)
    newer = settings.MISTUDIO_DATA / "trainings" / str(newest.pk + 5)
    newer.mkdir(parents=True)
    age(newer)
    result = run("orphans")
    assert newer.exists() and "was the database set back?" in result["wrong"][0]


def finished(row, **files):
    """Its files, with their manifest."""
    row.result_folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (row.result_folder / name).write_text(content)
    write_manifest(row.result_folder, list(files))
    return row


def test_what_is_ready_without_its_folder_or_a_file_is_reported_and_nothing_changes(team):
    whole, torn, gone = (rows.tokenization(team, name) for name in ("whole", "torn", "gone"))
    for row in (whole, torn):
        finished(row, ids="1 2 3", ends="3")
    (torn.folder / "ids").unlink()
    for row in (*(t.dataset for t in (whole, torn, gone)), *(t.language_model for t in (whole, torn, gone))):
        finished(row, data="1 2 3")
    (whole.dataset.folder / "manifest.json").unlink()
    dry, real = run("missing", dry_run=True), run("missing")
    assert real["summary"] == dry["summary"] == "3 objects without files; 3 to look at"
    assert (
        real["wrong"]
        == dry["wrong"]
        == [
            f"Dataset “{whole.dataset}” ({whole.dataset.pk}): its manifest.json is missing or names no file.",
            f"Tokenization “torn” ({torn.pk}): ids is missing.",
            f"Tokenization “gone” ({gone.pk}): its folder {gone.folder} is gone.",
        ]
    )


# ---- checksums


@pytest.fixture
def month_old():
    def make(row, days):
        type(row).objects.filter(pk=row.pk).update(ready_at=timezone.now() - timedelta(days=days))
        return row

    return make


def test_objects_are_read_again_the_longest_unread_first_and_damage_is_told(team, month_old, monkeypatch):
    older, old, young = (finished(rows.tokenization(team, name), ids=name * 9) for name in ("older", "old", "young"))
    month_old(older, 50), month_old(old, 40)
    flip(older.folder / "ids")
    monkeypatch.setattr(checksums, "AT_ONCE", 10)
    dry = run("checksums", dry_run=True)
    assert dry["details"] == [f"tokenization “older” ({older.pk})"] and dry["bytes"] == 45
    assert not (older.folder / "verified.json").exists()
    real = run("checksums")
    assert figures(real) == figures(dry) and real["wrong"] == [f"Tokenization “older” ({older.pk}): ids was changed."]
    assert run("checksums")["details"] == [f"tokenization “old” ({old.pk})"]
    assert run("checksums")["summary"] == "Nothing to do", "the young one waits for its month"


def test_a_model_that_was_changed_is_quarantined_and_one_mended_is_not(team, month_old):
    model = rows.language_model(team)
    model.folder.mkdir(parents=True)
    (model.folder / "weights").write_text("one")
    file = {"name": "weights", "bytes": 3, "sha256": sha256(model.folder / "weights")}
    type(model).objects.filter(pk=model.pk).update(files=[file])
    month_old(model, 40)
    flip(model.folder / "weights")
    assert "has other content" in run("checksums")["wrong"][0]
    model.refresh_from_db()
    assert model.damaged and (model.folder / "damaged.json").exists()
    flip(model.folder / "weights")
    type(model).objects.update(verified_at=timezone.now() - timedelta(days=31))
    assert run("checksums")["wrong"] == []
    model.refresh_from_db()
    assert not model.damaged and not (model.folder / "damaged.json").exists()


# ---- caches, monitor, sessions


def test_the_least_recently_used_caches_go_until_a_team_is_within_its_quota(
    team, settings, django_capture_on_commit_callbacks
):
    now = timezone.now()
    caches = [
        finished(rows.activation_cache(team, f"cache{n}", used_at=now - timedelta(days=n), size_bytes=100), a="x")
        for n in range(4)
    ]
    reader = rows.training(team, caches=[caches[3]])
    job_of(reader, "running")
    settings.CACHE_QUOTA_BYTES = 250
    dry = run("caches", dry_run=True)
    assert dry["summary"] == "Would be: 2 caches evicted (200 bytes)" and all(cache.folder.exists() for cache in caches)
    with django_capture_on_commit_callbacks(execute=True):
        assert figures(run("caches")) == figures(dry)
    assert [cache.folder.exists() for cache in caches] == [True, False, False, True], "the one in use stays"
    assert ActivationCache.objects.filter(evicted_at=None).count() == 2
    settings.CACHE_QUOTA_BYTES = 0
    assert run("caches")["summary"] == "Nothing to do", "without a quota none is evicted"


def test_what_an_eviction_that_was_killed_left_on_the_disk_goes(team):
    cache = finished(rows.activation_cache(team, ready_at=None, evicted_at=timezone.now()), a="xy")
    dry = run("caches", dry_run=True)
    assert dry["counts"] == {"folder removed": 1} and cache.folder.exists()
    assert figures(run("caches")) == figures(dry) and not cache.folder.exists()


def test_readings_of_a_host_without_a_sampler_go_when_they_are_too_old():
    host, now = Host.objects.create(name="gone"), timezone.now()
    record(host, [(now - timedelta(days=200, seconds=n), {"load.1": 1.0}) for n in range(40)])
    other = Host.objects.create(name="here")
    record(other, [(now, {"load.1": 1.0})])
    dry = run("monitor", dry_run=True)
    assert dry["counts"] == {"row removed": 40} and Sample.objects.count() == 41
    assert figures(run("monitor")) == figures(dry)
    assert not Host.objects.filter(pk=host.pk).exists() and other.samples.count() == 1


def test_expired_sessions_go_and_others_stay(alice, client_of):
    client_of(alice)
    Session.objects.create(session_key="old", session_data="", expire_date=timezone.now() - timedelta(days=1))
    dry = run("sessions", dry_run=True)
    assert dry["counts"] == {"session removed": 1} and Session.objects.count() == 2
    assert figures(run("sessions")) == figures(dry)
    assert not Session.objects.filter(session_key="old").exists() and Session.objects.count() == 1


# ---- page


@pytest.fixture
def admin(alice, client_of):
    alice.is_staff = True
    alice.save()
    return client_of(alice)


def test_only_staff_sees_upkeep_and_its_jobs(admin, alice, bob, charlie, client_of):
    job = start("sessions", owner=alice)
    urls = [reverse("upkeep"), reverse("upkeep_task", args=["logs"]), reverse("job", args=[job.pk])]
    nobodys = type(bob).objects.create_user("nobody", password="x")
    nobodys.teams.clear()
    for url in urls:
        assert admin.get(url).status_code == 200
        assert [client_of(person).get(url).status_code for person in (bob, charlie, nobodys)] == [404] * 3
    assert client_of(bob).post(reverse("upkeep_run", args=["logs"])).status_code == 404
    assert client_of(bob).post(reverse("job_cancel", args=[job.pk])).status_code == 404
    assert reverse("upkeep") in admin.get("/").content.decode()
    assert reverse("upkeep") not in client_of(bob).get("/").content.decode()
    assert Job.objects.filter(kind="upkeep", state="queued").count() == 1


def test_run_now_and_dry_run_start_a_job_of_the_person_and_lead_back(admin, alice):
    for data in ({}, {"dry_run": "1"}):
        answer = admin.post(reverse("upkeep_run", args=["caches"]), data)
        assert answer.status_code == 302 and answer.url == reverse("upkeep")
    assert [(job.params["dry_run"], job.owner, job.team) for job in Job.objects.order_by("pk")] == [
        *((False, alice, None), (True, alice, None)),
    ]
    assert admin.post(reverse("upkeep_run", args=["nothing"])).status_code == 404


def test_the_page_shows_how_each_ended_until_a_later_run_and_escapes_what_it_found(admin):
    def ended(task, dry_run, state, **fields):
        job = start(task, dry_run=dry_run)
        Job.objects.filter(pk=job.pk).update(state=state, finished_at=timezone.now(), **fields)

    ended("logs", True, "succeeded", result={"summary": "Would be: 4 logs removed", "wrong": []})
    ended("backup", False, "failed", error_message="<b>no space</b>")
    page = admin.get(reverse("upkeep")).content.decode()
    assert "Would be: 4 logs removed" in page and "&lt;b&gt;no space&lt;/b&gt;" in page and "Never run" in page
    ended("logs", False, "succeeded", result={"summary": "4 logs removed", "wrong": ["<i>one</i>"]})
    page = admin.get(reverse("upkeep")).content.decode()
    assert "Would be" not in page and "4 logs removed" in page
    assert "&lt;i&gt;one&lt;/i&gt;" in admin.get(reverse("upkeep_task", args=["logs"])).content.decode()


def test_a_schedule_is_changed_on_its_page_and_a_wrong_time_is_told_there(admin):
    url = reverse("upkeep_task", args=["logs"])
    answer = admin.post(url, {"every": "weekly", "at": "25:00", "weekday": "0", "enabled": "on"})
    assert answer.status_code == 422 and "from 00:00 to 23:59" in answer.content.decode()
    assert admin.post(url, {"every": "weekly", "at": "05:45", "weekday": "0"}).status_code == 302
    row = Schedule.objects.get(task="logs")
    assert (row.said, row.enabled) == ("Mondays at 05:45", False)
    assert "Only when asked for" in admin.get(reverse("upkeep")).content.decode()


def test_the_pages_ask_as_much_for_many_runs_as_for_few(admin, alice):
    def asked(url):
        with CaptureQueriesContext(connection) as caught:
            assert admin.get(url).status_code == 200
        return len(caught)

    urls = [reverse("upkeep"), reverse("upkeep_task", args=["logs"])]
    start("logs", owner=alice)
    few = [asked(url) for url in urls]
    for task in ("logs", "caches", "sessions"):
        for _ in range(4):
            Job.objects.filter(pk=start(task, owner=alice).pk).update(state="succeeded", result={"summary": "1 log"})
    start("logs", owner=alice)
    assert [asked(url) for url in urls] == few and max(few) <= 32


def test_the_page_of_a_task_follows_its_run_until_that_has_ended(admin, alice):
    url, job = reverse("upkeep_task", args=["logs"]), start("logs", owner=alice)
    page = admin.get(url).content.decode()
    assert "data-follow" in page and f"&amp;t=jobs.{job.pk}" in page and f'id="job-{job.pk}"' in page
    Job.objects.filter(pk=job.pk).update(state="succeeded", finished_at=timezone.now())
    page = admin.get(url).content.decode()
    assert "data-follow" not in page and "&amp;t=" not in page


# ---- command


def command(*arguments):
    out, err, code = StringIO(), StringIO(), 0
    try:
        call_command("upkeep", *arguments, stdout=out, stderr=err)
    except SystemExit as ended:
        code = ended.code
    return code, out.getvalue(), err.getvalue()


def test_the_command_lists_the_tasks_and_refuses_one_that_is_none():
    code, out, _ = command("--list", "--json")
    listed = {row["task"]: row for row in json.loads(out)}
    assert code == 0 and listed["backup"]["schedule"] == "daily at 02:30" and listed["backup"]["last"] is None
    Schedule.objects.filter(task="backup").update(enabled=False)
    assert "backup       off" in command("--list")[1]
    code, _, err = command("nothing")
    assert code == 2 and err.startswith("task: There is no task of upkeep “nothing”.")


def test_the_deployment_guide_has_every_task_with_its_schedule():
    page = (ROOT / "docs" / "deployment.md").read_text()
    told = {cells[0].strip("`"): cells[1] for cells in table(page[page.index("## Upkeep") : page.index("## Backup")])}
    assert told == {schedule.task: schedule.said for schedule in Schedule.objects.all()}


def table(text):
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
