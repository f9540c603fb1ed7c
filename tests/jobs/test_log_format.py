"""Log lines of real processes: the site, a worker, the process of a job."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import datetime, timedelta

import pytest

from jobs.log_format import job_here
from jobs.logs import log_path
from jobs.processes import this_host
from jobs.secrets import hidden
from jobs.studio import address_of
from jobs.supervise import run_here
from tests.conftest import ROOT, free_port, manage
from tests.jobs.conftest import until
from tests.jobs.test_probes import parsed

SECRETS = {
    "HF_TOKEN": "hf_abcdefghijklmnop",
    "MISTUDIO_METRICS_TOKEN": "0123456789abcdef0123",
    "REDIS_URL": "redis://studio:hunter2@127.0.0.1:1/0",
    "MISTUDIO_SECRET_KEY": "a secret key of some length, and of no value",
}
SAYS = """
import django, logging, os, warnings
django.setup()
log = logging.getLogger("some.room")
log.warning("two\\nlines of %s with a key %s", "é \\u2028", " ".join(os.environ[name] for name in SECRETS))
try:
    raise ValueError("not with " + os.environ["HF_TOKEN"])
except ValueError:
    log.exception("it failed")
warnings.warn("old ways")
"""


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def say(**env):
    code = SAYS.replace("SECRETS", repr(list(SECRETS)))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **SECRETS, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for secret in (*SECRETS.values(), "hunter2"):
        assert secret not in done.stderr
    return done.stderr


def test_each_record_is_one_json_object_with_its_time_in_utc_and_without_secrets():
    first, second, third = lines_of(say(MISTUDIO_LOG_FORMAT="json"))
    assert datetime.fromisoformat(first.pop("time")).utcoffset() == timedelta(0)
    said = "two\nlines of é \u2028 with a key *** *** redis://***127.0.0.1:1/0 ***"
    assert first == {"level": "WARNING", "logger": "some.room", "message": said}
    assert second["level"] == "ERROR" and second["message"] == "it failed"
    assert second["exception"].startswith("Traceback") and second["exception"].endswith("ValueError: not with ***")
    assert third["logger"] == "py.warnings" and "old ways" in third["message"]


def test_lines_for_people_keep_secrets_too():
    text = say()
    assert "WARNING some.room: two\nlines of" in text and "ValueError: not with ***" in text


@pytest.mark.parametrize(
    ("variable", "value"), [("MISTUDIO_LOG_FORMAT", "xml"), ("MISTUDIO_METRICS_TOKEN", "short"), ("MISTUDIO_PORT", "x")]
)
def test_a_setting_that_makes_no_sense_stops_every_command_with_a_sentence(variable, value):
    done = manage("check", env={variable: value})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"miStudio cannot start. {variable}") and done.stderr.count("\n") == 1


def test_an_address_without_a_password_is_no_secret(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://localhost:6379/0")
    assert hidden("redis://localhost:6379/0 does not answer") == "redis://localhost:6379/0 does not answer"


@pytest.mark.django_db(transaction=True)
def test_the_process_of_a_job_says_which_job_it_is(sleepy, alice, monkeypatch):
    monkeypatch.setenv("MISTUDIO_LOG_FORMAT", "json")
    code = (
        "import logging, threading; t = threading.Thread(target=logging.warning, args=['hello']); t.start(); t.join()"
    )
    monkeypatch.setattr("jobs.processes.manage", lambda *words: [sys.executable, "-c", AS_A_JOB, code, *words])
    job = run_here(sleepy(alice, steps=1))
    assert job.state == "succeeded", job.error_detail
    records = [json.loads(line) for line in log_path(job).read_text().splitlines() if line.startswith("{")]
    assert [record["message"] for record in records] == ["hello"]
    named = {name: records[0][name] for name in ("job", "kind", "attempt", "user")}
    assert named == {"job": job.pk, "kind": "sleepy", "attempt": 1, "user": alice.pk}


# `manage.py run_job`, but its kind runs this code first.
AS_A_JOB = """
import sys, django
django.setup()
from django.core.management import execute_from_command_line
from jobs.kinds import sleepy
run, code = sleepy.run, sys.argv[1]
sleepy.run = lambda params, ctx: exec(code) or run(params, ctx)
execute_from_command_line(["manage.py", *sys.argv[2:]])
"""


@pytest.mark.django_db(transaction=True)
def test_who_supervises_a_job_speaks_of_it_until_it_ends(sleepy):
    seen = []
    job = run_here(sleepy(steps=10, seconds=0.1), on_look=lambda job: seen.append(dict(job_here)))
    assert job.state == "succeeded" and seen
    assert all(facts == {"job": job.pk, "kind": "sleepy", "attempt": 1, "user": None} for facts in seen)
    assert not job_here


@pytest.mark.django_db(transaction=True)
def test_a_worker_writes_json_and_nothing_else(beside, row):
    """What it has to say: it found a job whose supervisor is gone."""
    known = {"host": this_host(), "supervisor_pid": 2**22 - 1, "supervisor_start": 1, "losses": 2}
    job = row("running", **known)
    worker = beside("worker", "--queue", "cpu", env={"MISTUDIO_LOG_FORMAT": "json"})
    until(lambda: "now failed" in worker.text())
    worker.stop()
    found = [record for record in lines_of(worker.text()) if record["logger"] == "jobs.reap"]
    assert [record["message"] for record in found] == [f"Job {job.pk} (a job): failed, now failed"]


@pytest.mark.django_db(transaction=True)
def test_the_site_writes_json_with_who_asked_and_answers_probes(beside, client_of, alice):
    port, env = (
        free_port(),
        {"MISTUDIO_LOG_FORMAT": "json", "MISTUDIO_METRICS_TOKEN": SECRETS["MISTUDIO_METRICS_TOKEN"]},
    )
    site = beside("studio", "--quiet", "--no-worker", "--port", str(port), env=env)
    url = until(lambda: address_of(site.pid))
    cookies = "; ".join(f"{name}={morsel.value}" for name, morsel in client_of(alice).cookies.items())
    assert get(f"{url}nowhere/", Cookie=cookies)[0] == 404
    assert get(f"{url}healthz", Host="10.0.0.7") == (200, "ok\n")
    assert get(f"{url}readyz", Host="10.0.0.7") == (200, '{"ready": true, "not_ready": []}')
    status, text = get(f"{url}metrics", Authorization=f"Bearer {SECRETS['MISTUDIO_METRICS_TOKEN']}")
    assert status == 200 and parsed(text)["mistudio_http_responses_total"][1][(("status", "404"),)] == 1
    site.stop()
    assert [(record["message"], record.get("user")) for record in lines_of(site.text())] == [
        ("Not Found: /nowhere/", alice.pk)
    ]


def get(url, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
