"""What `manage.py doctor` finds of an installation, one thing wrong at a time, and how it says it."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import time
from importlib.metadata import version

import pytest
from django.core.checks import ERROR, INFO, WARNING
from django.core.management import call_command
from django.db.utils import ConnectionHandler
from huggingface_hub import constants
from packaging.requirements import Requirement

from jobs import schema
from jobs.folders import YOUNG
from jobs.models import Job
from mistudio import settings as project
from mistudio.doctor import artifacts, data_folder, database, packages, site
from mistudio.doctor.hub import hub as ask_hub
from mistudio.models import HubToken
from tests import rows
from tests.conftest import ROOT, free_port, manage
from tests.jobs.test_doctor import said

# ---- the command


def test_an_empty_folder_is_told_in_one_line_for_each_finding_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    own = {"MISTUDIO_DATA": str(tmp_path), "MISTUDIO_SECRET_KEY": "", "MISTUDIO_PORT": str(free_port())}
    done = manage("doctor", env=own)
    assert done.returncode == 1 and not done.stderr
    *findings, counts = done.stdout.splitlines()
    assert counts == "1 problem, 1 warning" and all(
        line.split()[0] in ("OK", "warning", "problem") for line in findings
    )
    levels = [line.split()[0] for line in findings]
    assert levels == sorted(levels, key=["OK", "warning", "problem"].index)
    assert "migrations not applied" in findings[-1] and findings[-1].endswith("Run: mistudio migrate")
    assert findings[-2].startswith("warning  artifacts, clocks, job-folders, jobs, secrets, workers Not looked at")
    assert [line for line in findings if " torch " in line and "PyTorch" in line]


@pytest.mark.django_db
def test_a_sound_installation_has_no_problem_and_says_so_as_json(capsys, monkeypatch):
    call_command("doctor", "--json")
    document = json.loads(capsys.readouterr().out)
    assert (
        document["ok"]
        and document["problem"] == 0
        and document["warning"] == len([one for one in document["findings"] if one["level"] == "warning"])
    )
    areas = {one["area"] for one in document["findings"]}
    assert {"code", "packages", "data-folder", "database", "torch", "workers", "jobs", "artifacts", "site"} <= areas
    assert "hub" not in areas and all(one["finding"] for one in document["findings"])
    [said_of_torch] = [one["finding"] for one in document["findings"] if one["area"] == "torch"]
    assert said_of_torch.startswith(f"PyTorch {version('torch')}")


@pytest.mark.slow
@pytest.mark.django_db
def test_a_problem_ends_with_exit_code_one(capsys, alice):
    Job.objects.create(team=alice.team, kind="sleepy", queue="gpu", title="waits")
    with pytest.raises(SystemExit) as ended:
        call_command("doctor")
    assert ended.value.code == 1 and "1 problem" in capsys.readouterr().out


# ---- packages


def test_packages_are_compared_with_pyproject():
    level, words = said(packages.packages)[0]
    assert level == INFO and words.endswith("packages as pyproject.toml wants them.")


def test_a_package_that_is_missing_or_of_another_version_is_a_problem(tmp_path, settings):
    text = (ROOT / "pyproject.toml").read_text()
    changed = {'"django>=5.2.19,<5.3"': '"django>=7"', '"numpy>=': '"no-such-package",\n  "numpy>=', "3.11": "9.9"}
    for old, new in changed.items():
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / "pyproject.toml").write_text(text.replace('"numba>=0.68,<0.69"', '"another-missing-one"'))
    settings.ROOT = tmp_path
    python, django, missing, fast = said(packages.packages)
    assert python[0] == ERROR and "miStudio needs >=9.9" in python[1]
    assert (
        django[0] == ERROR and "django is 5.2" in django[1] and "needs >=7" in django[1] and "pip install" in django[1]
    )
    assert missing[0] == ERROR and "no-such-package is not installed" in missing[1]
    assert fast[0] == WARNING and "another-missing-one is not installed" in fast[1] and "[fast]" in fast[1]


def test_a_build_of_the_pinned_version_is_that_version():
    assert packages.wrong_with(Requirement("torch==2.13.0")) == ""  # it may be 2.13.0+cpu


# ---- data folder and secrets


@pytest.mark.parametrize(
    ("kind", "vendor", "level", "words"),
    [
        ("nfs4", "sqlite", ERROR, "network file system (nfs4), where it can be damaged. Set DATABASE_URL"),
        ("nfs4", "postgresql", INFO, "is on nfs4"),
        ("tmpfs", "sqlite", WARNING, "all is lost when the machine restarts"),
        ("overlay", "sqlite", WARNING, "all is lost with it"),
        ("ext4", "sqlite", INFO, "is on ext4"),
    ],
)
def test_a_file_system_is_judged_by_what_lies_on_it(kind, vendor, level, words):
    ((found, text),) = said(lambda: data_folder.of_file_system(kind, vendor))
    assert found == level and words in text


@pytest.mark.parametrize(("free", "level"), [(10**8, ERROR), (5 * 10**9, WARNING), (10**12, INFO)])
def test_little_room_is_told_in_time(free, level):
    found = data_folder.of_room(free, 2 * 10**12)
    assert found.level == level and "of 2.0 TB are free" in found.msg


@pytest.mark.django_db
def test_a_folder_that_cannot_be_written_is_a_problem(settings, tmp_path):
    settings.MISTUDIO_DATA = tmp_path / "file"
    settings.MISTUDIO_DATA.write_text("no folder")
    level, words = said(data_folder.data_folder)[0]
    assert level == ERROR and words.startswith("MISTUDIO_DATA cannot be written: Not a directory")


@pytest.mark.django_db
def test_a_secret_key_that_others_can_read_is_a_problem(settings, monkeypatch, tmp_path, alice):
    settings.MISTUDIO_DATA = tmp_path
    monkeypatch.delenv("MISTUDIO_SECRET_KEY")
    key = tmp_path / "secret_key"
    key.write_text("x")
    key.chmod(0o644)
    assert said(data_folder.secrets) == [
        (
            ERROR,
            f"Others on this machine can read {key} (mode 644), and with it sign in as anybody. Run: chmod 600 {key}",
        )
    ]
    key.chmod(0o600)
    assert said(data_folder.secrets)[0][0] == INFO
    monkeypatch.setenv("MISTUDIO_SECRET_KEY", "short")
    settings.SECRET_KEY = "short"
    assert said(data_folder.secrets)[0][1].startswith("MISTUDIO_SECRET_KEY has 5 letters")


@pytest.mark.django_db
def test_tokens_that_another_key_has_sealed_are_counted(settings, alice):
    HubToken.store(alice, "hf_abcdefghijklmnop")
    assert said(data_folder.of_tokens) == []
    settings.SECRET_KEY = "another key, of the same value as the first one"
    ((level, words),) = said(data_folder.of_tokens)
    assert level == WARNING and words.startswith("1 token of the hub cannot be read") and "hf_" not in words


# ---- database


def of_file(folder):
    """A database as the site opens it, in another folder."""
    return ConnectionHandler({"default": project.database("", folder)})["default"]


@pytest.fixture
def filled(tmp_path, db):
    connection = of_file(tmp_path)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (x)")
        cursor.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 20000) "
                       "INSERT INTO t SELECT hex(randomblob(50)) FROM n")  # fmt: skip
    yield connection
    connection.close()


def test_a_sound_file_is_read_to_its_end(filled):
    ((level, words),) = said(lambda: database.of_sqlite(filled))
    assert level == INFO and words.endswith("are undamaged.")


def test_a_damaged_file_is_a_problem(filled, tmp_path):
    filled.close()
    path = tmp_path / "mistudio.sqlite3"
    with sqlite3.connect(path) as plain:
        plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    plain.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * 8192)
    ((level, words),) = said(lambda: database.of_sqlite(of_file(tmp_path)))
    assert level == ERROR and words.startswith("The SQLite file is damaged:") and "last backup" in words


def test_reading_the_file_has_an_end(filled):
    assert database.damage(filled, seconds=0) is None
    assert database.damage(filled) == ["ok"], "the connection is as it was"
    ((level, words),) = said(lambda: database.of_content(None, 10**12))
    assert level == WARNING and "1.0 TB were not read to the end" in words


def test_a_journal_that_is_no_wal_is_a_problem(filled):
    with filled.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode=DELETE")
    level, words = said(lambda: database.of_sqlite(filled))[0]
    assert level == ERROR and "“delete”, not “wal”" in words


def test_migrations_that_are_missing_or_newer_are_problems():
    missing, newer = said(lambda: database.of_schema(["jobs.0002_b", "jobs.0003_c"], ["mistudio.0099_z"]))
    assert missing == (ERROR, "2 migrations not applied, the first jobs.0002_b. Run: mistudio migrate")
    assert newer[0] == ERROR and "newer miStudio: mistudio.0099_z" in newer[1]


def test_a_database_that_does_not_answer_is_named_without_its_password(monkeypatch, db):
    port = free_port()
    url = f"postgresql://studio:hunter2@127.0.0.1:{port}/studio"
    monkeypatch.setenv("DATABASE_URL", url)
    away = ConnectionHandler({"default": project.database(url, ROOT)})["default"]
    monkeypatch.setattr(database, "connection", away)
    monkeypatch.setattr(schema, "connection", away)
    ((level, words),) = said(database.database)
    assert level == ERROR and words.startswith("The database studio on 127.0.0.1 refuses") and "DATABASE_URL" in words
    assert "hunter2" not in words


# ---- site


def test_without_a_site_its_port_is_looked_at():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert site.of_port(port).level == WARNING and f"port {port} cannot be had" in site.of_port(port).msg
    assert site.of_port(free_port()).level == INFO


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_site_that_runs_is_named_with_what_others_reach(beside_studio, settings):
    settings.ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
    process, url = beside_studio("--host", "0.0.0.0")
    found = said(site.site)
    assert found[0] == (INFO, f"Runs at {url} (process {process.pid}).")
    words = " ".join(text for level, text in found if level == WARNING)
    assert "It listens on 0.0.0.0:" in words and "another name than localhost is refused" in words
    assert "unencrypted" in words
    process.process.send_signal(signal.SIGSTOP)  # it holds the folder, and does not answer
    try:
        level, words = said(site.site)[0]
    finally:
        process.process.send_signal(signal.SIGCONT)
    assert level == ERROR and words.startswith(f"Process {process.pid} holds the data folder")


@pytest.fixture
def beside_studio(tmp_path):
    from jobs.studio import address_of
    from tests.jobs.conftest import Process, until

    started = []

    def start(*arguments):
        process = Process(tmp_path, "studio", "--quiet", "--no-worker", "--port", str(free_port()), *arguments)
        started.append(process)
        return process, until(lambda: address_of(process.pid))

    yield start
    for process in started:
        process.stop()


PUBLIC = ["0.0.0.0:8000"]
NAMED = ["localhost", "studio.example.org"]
TLS = ("HTTP_X_FORWARDED_PROTO", "https")


@pytest.mark.parametrize(
    ("public", "changed", "expected"),
    [
        ([], {}, [(INFO, "Answers to")]),
        ([], {"DEBUG": True}, [(WARNING, "MISTUDIO_DEBUG is on")]),
        ([], {"DEBUG": True, "ALLOWED_HOSTS": NAMED}, [(ERROR, "MISTUDIO_DEBUG is on")]),
        (PUBLIC, {"DEBUG": True, "SECURE_PROXY_SSL_HEADER": TLS, "ALLOWED_HOSTS": NAMED}, [(ERROR, "MISTUDIO_DEBUG")]),
        (PUBLIC, {"SECURE_PROXY_SSL_HEADER": TLS}, [(WARNING, "It listens on 0.0.0.0:8000, but")]),
        (PUBLIC, {"ALLOWED_HOSTS": NAMED}, [(WARNING, "On 0.0.0.0:8000 passwords and sessions")]),
        (PUBLIC, {"ALLOWED_HOSTS": ["*"], "SECURE_PROXY_SSL_HEADER": TLS}, [(WARNING, "MISTUDIO_ALLOWED_HOSTS is *")]),
        (
            [],
            {"CSRF_TRUSTED_ORIGINS": ["https://studio.example.org"]},
            [(ERROR, "MISTUDIO_TRUSTED_ORIGINS has https://studio.example.org, but"), (WARNING, "https://studio.exam")],
        ),
        (
            PUBLIC,
            {
                "CSRF_TRUSTED_ORIGINS": ["https://studio.example.org", "https://*.example.net"],
                "ALLOWED_HOSTS": NAMED,
                "SECURE_PROXY_SSL_HEADER": TLS,
            },
            [(INFO, "Answers to localhost, studio.example.org; MISTUDIO_DEBUG is off.")],
        ),
    ],
)
def test_settings_are_judged_in_combination(public, changed, expected, settings):
    settings.ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]
    for name, value in changed.items():
        setattr(settings, name, value)
    found = said(lambda: site.of_settings(public))
    assert [level for level, _ in found] == [level for level, _ in expected]
    assert all(text.startswith(words) for (_, text), (_, words) in zip(found, expected, strict=True))


# ---- artifacts


@pytest.mark.django_db
def test_what_is_ready_and_has_no_folder_is_a_problem_and_what_has_no_row_is_told(alice, settings):
    sae = rows.sae(alice.team)
    for row in (sae, sae.training, sae.training.tokenization, sae.training.tokenization.dataset, sae.language_model):
        row.folder.mkdir(parents=True, exist_ok=True)
    assert said(artifacts.artifacts)[0][0] == INFO
    stray = settings.MISTUDIO_DATA / "trainings" / "999"
    (stray / "sae").mkdir(parents=True)
    (stray / "sae" / "weights").write_bytes(b"x" * 2500)
    long_ago = time.time() - YOUNG - 10
    os.utime(stray, (long_ago, long_ago))
    shutil.rmtree(sae.folder)
    left, missing = said(artifacts.artifacts)
    assert left[0] == WARNING and left[1].startswith("1 folder in trainings/ (2.5 kB) belong to no row.")
    assert left[1].endswith(str(stray)) and stray.exists()
    assert missing == (
        ERROR,
        f"1 SAE without a folder: “{sae.name}” ({sae.pk}). Bring {settings.MISTUDIO_DATA / 'saes'} back from a backup, "
        "or delete them on their pages.",
    )


@pytest.mark.django_db
def test_looking_at_folders_costs_as_much_for_many_rows_as_for_few(alice, django_assert_num_queries):
    for n in range(2):
        rows.sae(alice.team, f"sae {n}")
    with django_assert_num_queries(18):
        said(artifacts.artifacts)


# ---- hub


def test_the_hub_is_asked_with_and_without_a_token(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert said(ask_hub) == [(INFO, f"{hub.url} answers; no HF_TOKEN is set.")]
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_wrong_wrong")
    ((level, words),) = said(ask_hub)
    assert level == WARNING and words.startswith("The hub does not accept this token.") and "hf_" not in words
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    ((level, words),) = said(ask_hub)
    assert level == INFO and "knows HF_TOKEN: it belongs to alice-on-the-hub" in words


def test_a_hub_that_is_away_is_worth_a_word(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    ((level, words),) = said(ask_hub)
    assert level == WARNING and "does not answer" in words and "HF_ENDPOINT" in words
