"""Probes and metrics as a load balancer and Prometheus see them: by address, without a session."""

import re
from datetime import timedelta

import pytest
from django.core.cache import cache
from django.db import DatabaseError, connection
from django.test import Client
from django.utils import timezone

from jobs import metrics, probes, schema
from jobs.models import Job, LiveEvent, Worker
from jobs.tail import TAILS, Reader, Tail
from tests.conftest import ROOT

TOKEN = "a token that is long enough"


@pytest.fixture(autouse=True)
def nothing_kept():
    cache.clear()


def ask(path, **headers):
    """As a machine asks: by an address that is none of our names."""
    return Client(headers={"host": "10.0.0.7:8000", **headers}).get(path)


# ---- health and readiness


def test_a_process_that_answers_is_healthy_without_a_database_a_session_or_a_known_name():
    for path in ("/healthz", "/healthz/"):  # this test may not touch the database
        answer = ask(path)
        assert (answer.status_code, answer.content) == (200, b"ok\n") and answer.headers["Cache-Control"] == "no-store"
    assert ask("/login/").status_code == 400, "pages do mind by which name they are asked"


@pytest.mark.django_db
def test_a_signed_in_browser_costs_health_no_query_either(client_of, alice, django_assert_num_queries):
    client = client_of(alice)
    with django_assert_num_queries(0):
        assert client.get("/healthz").status_code == 200
    assert client.post("/healthz").status_code == 405


@pytest.mark.django_db
def test_a_site_with_database_migrations_and_data_folder_is_ready(django_assert_max_num_queries):
    with django_assert_max_num_queries(2):
        answers = [ask("/readyz") for _ in range(5)]
    assert {answer.status_code for answer in answers} == {200}
    assert answers[0].json() == {"ready": True, "not_ready": []}


@pytest.mark.django_db
def test_a_migration_that_is_not_applied_is_named_and_gone_a_second_later(monkeypatch):
    ours = schema.known() | {("mistudio", "9999_future")}
    monkeypatch.setattr(schema, "known", lambda: ours)
    assert schema.unapplied() == ["mistudio.9999_future"]
    answer = ask("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "not_ready": ["migrations: 1 not applied, run: mistudio migrate"]}
    monkeypatch.undo()
    assert ask("/readyz").status_code == 503, "kept, so that asking often costs nothing"
    cache.clear()  # as a second does
    assert ask("/readyz").status_code == 200


def test_a_database_that_is_away_is_named_without_what_its_error_says(monkeypatch):
    def away():
        raise DatabaseError('connection to server at "db.internal", user "studio", password "hunter2" failed')

    monkeypatch.setattr(schema, "applied", away)
    answer = ask("/readyz")
    assert answer.status_code == 503 and answer.json()["not_ready"] == ["database: does not answer"]
    assert "hunter2" not in answer.content.decode() and "internal" not in answer.content.decode()


@pytest.mark.django_db
def test_a_data_folder_that_is_gone_is_not_ready_and_its_path_is_not_told(settings, tmp_path):
    settings.MISTUDIO_DATA = tmp_path / "secret place"
    answer = ask("/readyz")
    assert answer.status_code == 503
    assert answer.json()["not_ready"] == ["data folder: cannot be written, No such file or directory"]


@pytest.mark.django_db
def test_a_migration_of_another_version_is_seen():
    from django.db.migrations.recorder import MigrationRecorder

    assert schema.newer() == []
    MigrationRecorder(connection).record_applied("jobs", "9000_of_tomorrow")
    MigrationRecorder(connection).record_applied("an_app_that_was_removed", "0001_initial")
    assert schema.newer() == ["jobs.9000_of_tomorrow"] and schema.unapplied() == []


# ---- metrics


NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf'({NAME})(?:\{{((?:{NAME}="(?:[^"\\\n]|\\["\\n])*",?)*)\}})? (\S+)')
LABEL = re.compile(rf'({NAME})="((?:[^"\\\n]|\\["\\n])*)"')


def parsed(text):
    """{name: (type, {labels: value})}, by the rules of the format: HELP and TYPE once and before the samples, those of
    a family together, no sample twice, a line feed at the end."""
    assert text.endswith("\n")
    families, current = {}, None
    for line in text.removesuffix("\n").split("\n"):
        if help_ := re.fullmatch(rf"# HELP ({NAME}) (.+)", line):
            current = help_[1]
            assert current not in families
            families[current] = (None, {})
        elif type_ := re.fullmatch(rf"# TYPE ({NAME}) (gauge|counter)", line):
            assert type_[1] == current and families[current] == (None, {})
            families[current] = (type_[2], {})
            assert type_[2] != "counter" or current.endswith("_total")
        else:
            name, labels, value = SAMPLE.fullmatch(line).groups()
            assert name == current and families[name][0]
            key = tuple(sorted(LABEL.findall(labels or "")))
            assert key not in families[name][1]
            families[name][1][key] = float(value)
    return families


def test_the_parser_refuses_what_is_not_the_format():
    for wrong in ("x 1", "x 1\n", "# HELP x y\n# TYPE x gauge\nx{a=b} 1\n", "# HELP x y\n# TYPE x gauge\ny 1\n"):
        with pytest.raises((AssertionError, KeyError, AttributeError)):
            parsed(wrong)


def test_a_label_is_escaped_whatever_it_holds():
    odd = metrics.Family("x", "gauge", "y", [({"kind": 'a"b\\c\nd'}, 1)])
    assert metrics.exposition([odd]) == '# HELP x y\n# TYPE x gauge\nx{kind="a\\"b\\\\c\\nd"} 1\n'
    assert parsed(metrics.exposition([odd]))["x"][1] == {(("kind", 'a\\"b\\\\c\\nd'),): 1.0}


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
def test_metrics_are_for_who_has_the_token(path, settings, db):
    assert ask(path, authorization="Bearer ").status_code == 404, "without a token in the settings there are none"
    settings.METRICS_TOKEN = TOKEN
    for said in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"authorization": "Bearer é"}):
        answer = ask(path, **said)
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer" and not answer.content
    answer = ask(path, authorization=f"Bearer {TOKEN}")
    assert answer.status_code == 200 and answer.headers["Content-Type"] == metrics.CONTENT_TYPE
    assert TOKEN not in answer.content.decode()


def read():
    return parsed(metrics.exposition(metrics.families()))


def key(**labels):
    return tuple(sorted(labels.items()))


@pytest.mark.django_db
def test_the_figures_are_those_of_the_rows(row):
    now = timezone.now()
    row("queued", queue="gpu", queued_at=now - timedelta(seconds=90))
    row("queued", queue="gpu", queued_at=now - timedelta(seconds=30))
    row("running", kind="train_sae", queue="gpu", unit="tokens", rate=1000.0)
    row("running", kind="train_sae", queue="gpu", unit="tokens", rate=500.0)
    row("running", kind="add_model", unit="bytes", rate=9e9)
    for seconds in (50, 70):
        row("succeeded", kind="tokenize", started_at=now - timedelta(seconds=seconds), finished_at=now)
    row("failed", kind="tokenize", started_at=now - timedelta(hours=3), finished_at=now)
    Worker.objects.create(host="a", pid=1, queue="gpu", slots=2)
    Worker.objects.create(host="a", pid=2, queue="gpu", slots=1)
    Worker.objects.create(host="a", pid=3, queue="cpu", slots=2, heartbeat_at=now - timedelta(minutes=1))
    found = read()
    jobs = found["mistudio_jobs"][1]
    assert jobs[key(kind="sleepy", queue="gpu", state="queued")] == 2
    assert jobs[key(kind="tokenize", queue="cpu", state="succeeded")] == 2 and sum(jobs.values()) == 8
    waiting = found["mistudio_queue_oldest_waiting_seconds"][1]
    assert 90 <= waiting[key(queue="gpu")] < 120 and waiting[key(queue="cpu")] == 0
    rates = {key(kind="train_sae", queue="gpu"): 1500.0, key(kind="add_model", queue="cpu"): 0.0}
    assert found["mistudio_tokens_per_second"][1] == rates
    assert found["mistudio_job_last_duration_seconds"][1] == {key(kind="tokenize"): 70.0}
    assert found["mistudio_workers"][1] == {key(queue="gpu"): 2, key(queue="cpu"): 0}
    assert found["mistudio_worker_slots"][1] == {key(queue="gpu"): 3, key(queue="cpu"): 0}
    assert found["mistudio_database_up"][1] == {(): 1}
    assert 0 < found["mistudio_data_disk_free_bytes"][1][()] < found["mistudio_data_disk_size_bytes"][1][()]
    assert found["process_cpu_seconds_total"][1][()] > 0 and found["process_resident_memory_bytes"][1][()] > 10**6


@pytest.mark.django_db
def test_they_cost_four_queries_however_many_jobs_there_are_and_show_nothing_that_people_typed(
    row, django_assert_num_queries, monkeypatch
):
    monkeypatch.setitem(TAILS, type("Loop", (), {})(), reading())
    for queue in ("gpu", "cpu"):
        for state in ("queued", "running", "succeeded", "failed"):
            for n in range(5):
                fields = {"started_at": timezone.now(), "finished_at": timezone.now()} if state == "succeeded" else {}
                row(state, kind=f"kind_{n}", queue=queue, title='x"} 1\nevil', **fields)
    with django_assert_num_queries(4):
        text = metrics.exposition(metrics.families())
    assert "evil" not in text and "Home team" not in text
    assert len(parsed(text)["mistudio_jobs"][1]) == 40


def reading():
    tail = Tail()
    tail.reader, tail.tasks = Reader(), ["one"]
    tail.pages = {"a page", "another"}
    return tail


@pytest.mark.django_db
def test_open_pages_are_counted_once_and_unread_events_are_a_lag(monkeypatch):
    loop = type("Loop", (), {})()
    LiveEvent.objects.create(topic="jobs.1", at=timezone.now() - timedelta(seconds=60))
    monkeypatch.setitem(TAILS, loop, tail := reading())
    found = read()
    assert found["mistudio_live_pages"][1] == {(): 2}
    assert found["mistudio_live_lag_seconds"][1][()] >= 60, "the reader goes back a little: this one it has yet to read"
    tail.reader.read()
    assert read()["mistudio_live_lag_seconds"][1] == {(): 0}
    LiveEvent.objects.create(topic="jobs.1", at=timezone.now() - timedelta(seconds=9))
    assert 9 <= read()["mistudio_live_lag_seconds"][1][()] < 30
    tail.tasks = []  # it rests: no page is open
    assert read()["mistudio_live_lag_seconds"][1] == {(): 0}


def test_without_a_database_the_figures_of_the_process_remain(monkeypatch):
    def away(*args, **kwargs):
        raise DatabaseError

    monkeypatch.setattr(Job.objects, "order_by", away)
    found = read()
    assert found["mistudio_database_up"][1] == {(): 0} and "mistudio_jobs" not in found
    assert found["process_start_time_seconds"][1][()] > 1e9


@pytest.mark.django_db
def test_the_page_about_deployment_has_every_figure_and_its_labels(row):
    row("running"), row("succeeded", started_at=timezone.now(), finished_at=timezone.now())
    metrics.count_response(200, 0.1)
    page = (ROOT / "docs" / "deployment.md").read_text()
    lines = [
        line.strip("|").split("|") for line in page.splitlines() if line.startswith(("| `mistudio_", "| `process_"))
    ]
    told = {name: set(filter(None, labels.strip().split(", "))) for names, labels, _ in lines
            for name in re.findall(r"`(\w+)`", names)}  # fmt: skip
    found = {name: {label for labels in samples for label, _ in labels} for name, (_, samples) in read().items()}
    assert told == found


@pytest.mark.django_db
def test_answers_are_counted_by_status_and_probes_are_not():
    def counted():
        return {dict(labels)["status"]: n for labels, n in read()["mistudio_http_responses_total"][1].items()}

    before = counted()
    Client().get("/login/")
    Client().get("/nowhere/")
    ask("/healthz")
    after = counted()
    assert {status: after[status] - before.get(status, 0) for status in ("200", "404")} == {"200": 1, "404": 1}
    assert sum(after.values()) - sum(before.values()) == 2
    assert read()["mistudio_http_response_seconds_total"][1][key(status="200")] > 0
    assert probes.PROBES.keys() == {"/healthz", "/readyz", "/metrics"}
