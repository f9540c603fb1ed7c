"""A backup is worth what restoring it gives."""

import contextlib
import json
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
from django.conf import settings as site
from django.utils import timezone

from jobs.context import Context
from jobs.errors import Cancelled, InvalidInput, JobError
from jobs.kinds import upkeep as kind
from jobs.ml.disk import DiskFull
from mistudio import backups
from mistudio.management.commands.restore import restore, set_aside
from mistudio.upkeep.backup import kept
from tests import rows
from tests.conftest import ROOT, manage
from tests.files import contents, flip

SQLITE = site.DATABASES["default"]["ENGINE"].endswith("sqlite3")
only_sqlite = pytest.mark.skipif(not SQLITE, reason="of SQLite")


@pytest.fixture
def folder(settings, tmp_path):
    settings.BACKUPS = tmp_path / "backups"
    return settings.BACKUPS


def run(dry_run=False, ctx=None):
    return kind.run(kind.Params("backup", dry_run), ctx or Context(1, 1, kind.STAGES))


@pytest.fixture
def database(monkeypatch, tmp_path):
    """A database file of its own in the place of the site's."""
    path = tmp_path / "mistudio.sqlite3"
    with sqlite3.connect(path) as here:
        here.execute("PRAGMA journal_mode=WAL")
        here.execute("CREATE TABLE django_migrations (name text)")
        here.execute("CREATE TABLE note (said text)")
        here.executemany("INSERT INTO note VALUES (?)", [(f"note {n}",) for n in range(100)])
    here.close()
    monkeypatch.setattr(backups, "database_file", lambda: path)
    monkeypatch.setattr(backups, "postgres", lambda: False)
    return path


def notes(path):
    here = sqlite3.connect(path)
    try:
        return [said for (said,) in here.execute("SELECT said FROM note")]
    finally:
        here.close()


# ---- the task


@pytest.mark.django_db
@only_sqlite
def test_a_dry_run_writes_nothing_and_a_run_a_database_that_opens(folder):
    dry = run(dry_run=True)
    assert not folder.exists() and dry["summary"].startswith("Would be: 1 backup written (")
    real = run()
    (path,) = folder.iterdir()
    assert real["counts"] == dry["counts"] and real["bytes"] == dry["bytes"] == path.stat().st_size
    assert path.stat().st_mode & 0o077 == 0, "it holds what only this site may know"
    assert backups.examine_sqlite(path)["django_migrations"] > 50


@pytest.mark.django_db
@only_sqlite
def test_older_backups_go_only_after_a_new_one_was_tried_out(folder, monkeypatch):
    folder.mkdir()
    now = timezone.now()
    old = [backups.path_of(now - timedelta(days=days)) for days in range(1, 60)]
    for path in old:
        path.write_bytes(b"old")
    monkeypatch.setattr(backups, "restored_sqlite", lambda path, check: {"mistudio_user": 9})
    with pytest.raises(JobError, match="where the database had"):
        run()
    assert set(folder.iterdir()) == set(old), "nothing was removed, and nothing half is left"
    monkeypatch.undo()
    dry = run(dry_run=True)
    assert run()["counts"] == dry["counts"]
    assert len(backups.there()) == len(list(folder.iterdir())) <= 7 + 4


@pytest.mark.django_db
@pytest.mark.parametrize("trouble", [DiskFull("full"), PermissionError(13, "Permission denied")])
def test_a_backup_that_cannot_be_written_costs_no_older_one(folder, monkeypatch, trouble):
    folder.mkdir()
    old = backups.path_of(timezone.now() - timedelta(minutes=5))
    old.write_bytes(b"old")

    def refuse(path, check):
        raise trouble

    monkeypatch.setattr(backups, "write", refuse)
    with pytest.raises(JobError, match="The backup was not written"):
        run()
    assert list(folder.iterdir()) == [old]


@only_sqlite
@pytest.mark.parametrize("content", ["", "CREATE TABLE other (id);"])
def test_what_is_no_database_of_this_site_is_not_restored(tmp_path, content):
    path = tmp_path / "other.sqlite3"
    path.touch()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(content)
    with pytest.raises(InvalidInput, match="no database of miStudio"):
        backups.restore_sqlite(path)


def test_the_newest_of_seven_days_and_of_four_weeks_are_kept():
    newest = datetime(2026, 11, 22, 12, tzinfo=UTC)  # a Sunday
    moments = [newest - timedelta(hours=6 * n) for n in range(4 * 90)]
    days = [newest - timedelta(days=n) for n in range(1, 7)]
    evenings = [at.replace(hour=18) for at in days]
    sundays = [(newest - timedelta(weeks=n)).replace(hour=18) for n in range(1, 4)]
    assert kept(moments) == {newest, *evenings, *sundays}
    assert kept([newest]) == {newest}


# ---- writing


def test_what_others_write_meanwhile_is_not_in_it_and_does_no_harm(database, folder, monkeypatch):
    monkeypatch.setattr(backups, "PAGES", 1)
    monkeypatch.setattr(backups, "database_bytes", lambda: 10_000)
    written = []

    def check():
        if len(written) < 2:
            with sqlite3.connect(database) as other:
                other.execute("INSERT INTO note VALUES ('later')")
            other.close()
            written.append(1)

    backups.write(folder / "copy.sqlite3", check)
    assert len(written) == 2 and len(notes(database)) == 102
    assert notes(folder / "copy.sqlite3") == [f"note {n}" for n in range(100)]


def test_one_that_is_cancelled_leaves_nothing(database, folder, monkeypatch):
    monkeypatch.setattr(backups, "PAGES", 1)
    monkeypatch.setattr(backups, "database_bytes", lambda: 10_000)

    def check():
        raise Cancelled

    with pytest.raises(Cancelled):
        backups.write(folder / "copy.sqlite3", check)
    assert list(folder.iterdir()) == []


def test_what_a_killed_one_left_is_swept_away_by_the_next_and_nothing_of_other_programs(database, folder, monkeypatch):
    monkeypatch.setattr(backups, "database_bytes", lambda: 10_000)
    folder.mkdir()
    torn = ".mistudio-20260101T000000Z.sqlite3.0a1b2c3d"
    for name in (f"{torn}.tmp", f"{torn}.trial.tmp", ".of-another.tmp"):
        (folder / name).write_text("half")
    path = backups.path_of(timezone.now())
    backups.write(path)
    assert {left.name for left in folder.iterdir()} == {path.name, ".of-another.tmp"}


def test_without_room_for_it_nothing_is_begun(database, folder, monkeypatch):
    monkeypatch.setattr(backups, "database_bytes", lambda: 10**18)
    with pytest.raises(OSError, match="where backups are kept"):
        backups.write(folder / "copy.sqlite3")
    assert list(folder.iterdir()) == []


# ---- restoring


@pytest.fixture
def backup(database, folder, monkeypatch):
    monkeypatch.setattr(backups, "database_bytes", lambda: 10_000)
    backups.write(folder / "copy.sqlite3")
    return folder / "copy.sqlite3"


def test_restored_the_database_is_what_it_was_and_the_one_before_is_kept(database, backup):
    with sqlite3.connect(database) as here:
        here.execute("DELETE FROM note")
        here.execute("INSERT INTO note VALUES ('after')")
    here.close()
    before = restore(backup)
    assert notes(database) == [f"note {n}" for n in range(100)]
    assert notes(before) == ["after"] and backup.exists()
    assert not list(database.parent.glob("*-wal")) and not list(database.parent.glob(".*.tmp"))


def test_a_database_in_use_is_not_replaced(database, backup):
    other = sqlite3.connect(database)
    other.execute("SELECT count(*) FROM note").fetchone()
    with pytest.raises(InvalidInput, match="in use") as refused:
        restore(backup)
    other.close()
    assert "Stop the site" in refused.value.hint and not list(database.parent.glob("*.before-*"))
    restore(backup)


@pytest.mark.parametrize("how", ["damaged", "lost"])
def test_a_damaged_or_lost_database_is_replaced_and_its_log_is_not_merged_into_the_new_one(database, backup, how):
    log = database.with_name(database.name + "-wal")
    log.write_bytes(b"of another time")
    database.write_bytes(b"no database" * 100) if how == "damaged" else database.unlink()
    before = restore(backup)
    assert notes(database) == [f"note {n}" for n in range(100)]
    assert (before is None) == (how == "lost")
    assert [path.read_bytes() for path in database.parent.glob("*.before-*-wal")] == [b"of another time"]


def test_a_damaged_backup_is_refused_and_the_database_stays(database, backup):
    before = contents(database.parent, "*.sqlite3*")
    flip(backup, 30)
    backup.write_bytes(backup.read_bytes()[:4096])
    with pytest.raises(InvalidInput, match="not kept|cannot be read"):
        restore(backup)
    assert contents(database.parent, "*.sqlite3*") == before
    with pytest.raises(InvalidInput, match="no file"):
        restore(backup.with_name("other.sqlite3"))


@only_sqlite
@pytest.mark.slow
def test_the_command_restores_a_site_that_was_backed_up(tmp_path):
    env = {"MISTUDIO_DATA": str(tmp_path), "MISTUDIO_TEST_DATABASE": "", "DJANGO_SETTINGS_MODULE": "mistudio.settings"}
    assert manage("migrate", "-v0", env=env).returncode == 0
    done = manage("upkeep", "backup", env=env)
    (path,) = (tmp_path / "backups").iterdir()
    assert done.returncode == 0 and "Database backup: 1 backup written" in done.stdout, done.stderr
    with sqlite3.connect(tmp_path / "mistudio.sqlite3") as here:
        here.execute("DROP TABLE jobs_job")
    here.close()
    done = manage("restore", str(path), env=env)
    assert done.returncode == 0 and "The database before is kept as" in done.stdout, done.stderr
    listed = manage("upkeep", "--list", env=env)
    assert listed.returncode == 0 and "backup       daily at 02:30" in listed.stdout, listed.stderr
    assert manage("restore", "nothing", env=env).returncode == 2


def test_killed_anywhere_a_backup_is_whole_or_absent_and_a_restoration_leaves_the_old_database_or_the_new(database):
    command = [sys.executable, "-m", "tests.mistudio.kill_backups", str(database)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    written, restored = json.loads(done.stdout)
    assert len(written) >= 4 and set(written) <= {None, 100}, "rows of the copy after each kill"
    assert len(restored) >= 4 and set(restored) == {0, 100}, "rows of the database after each kill"


@pytest.mark.django_db
def test_folders_newer_than_what_was_restored_make_room_for_those_that_get_their_numbers(team, settings):
    row = rows.training(team)
    newer = settings.MISTUDIO_DATA / "trainings" / str(row.pk + 1)
    for folder in (row.folder, newer):
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("{}")
    (moved,) = set_aside()
    assert (moved / "result.json").exists() and row.folder.exists() and not newer.exists()
    assert set_aside() == []


# ---- PostgreSQL


@pytest.fixture
def server(postgres_url, monkeypatch):
    """The site's database is one of this server."""
    import shutil

    if shutil.which("pg_dump") is None:
        pytest.skip("pg_dump is not installed")
    parts = urlsplit(postgres_url)
    known = {"NAME": "notes", "USER": parts.username, "PASSWORD": parts.password or "", "HOST": parts.hostname}
    monkeypatch.setattr(backups, "settings_of_database", lambda: {**known, "PORT": parts.port})
    monkeypatch.setattr(backups, "postgres", lambda: True)
    monkeypatch.setattr(backups, "database_bytes", lambda: 10_000)
    with backups.connect_postgres("postgres") as here:
        here.execute("DROP DATABASE IF EXISTS notes")
        here.execute("CREATE DATABASE notes")
    with backups.connect_postgres() as here:
        here.execute("CREATE TABLE note AS SELECT generate_series(1, 100) AS n")


def test_of_postgresql_it_is_an_archive_that_was_restored_and_restores(server, folder):
    path = folder / "mistudio.dump"
    backups.write(path)
    with backups.connect_postgres() as here:
        assert not here.execute("SELECT 1 FROM pg_database WHERE datname LIKE '%trial%'").fetchone()
        here.execute("DELETE FROM note WHERE n > 3")
    restore(path)
    with backups.connect_postgres() as here:
        assert here.execute("SELECT count(*) FROM note").fetchone() == (100,)
        with pytest.raises(InvalidInput, match="1 other connections"):
            restore(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(JobError, match="pg_restore says"):
        restore(path)


def test_without_the_tools_of_postgresql_it_says_what_to_install(server, folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(JobError, match="pg_dump is not installed"):
        backups.write(folder / "mistudio.dump")
    assert list(folder.iterdir()) == []
