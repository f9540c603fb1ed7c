"""Copies of the database that were restored once: of SQLite a database file, of PostgreSQL an archive of pg_dump.

A copy bears its name only after it was tried out; whatever was being written when a process was killed is swept away by
the next one."""

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection

from jobs.errors import InvalidInput, JobError
from jobs.ml.disk import require_space
from jobs.ml.store import remove_torn, replacing
from jobs.secrets import hidden
from mistudio.models.upload import link_or_copy

NAMES = "mistudio-*"
STAMP = "mistudio-%Y%m%dT%H%M%SZ"
HEADER = b"SQLite format 3\0"
NOTICE = 1.0  # seconds
PAGES = 2048  # of SQLite, copied between two looks at what is wished for
Counts = dict[str, int]  # table → rows
Check = Callable[[], None]  # raises to stop


def postgres() -> bool:
    return connection.vendor == "postgresql"


def settings_of_database() -> dict[str, Any]:
    return connection.settings_dict


def path_of(at: datetime) -> Path:
    suffix = ".dump" if postgres() else ".sqlite3"
    return settings.BACKUPS / f"{at.astimezone(UTC):{STAMP}}{suffix}"


def there() -> dict[datetime, Path]:
    """Those of this kind of database, by when they were begun."""
    found = {}
    for path in sorted(settings.BACKUPS.glob(NAMES)):
        try:
            at = datetime.strptime(path.stem, STAMP).replace(tzinfo=UTC)
        except ValueError:
            continue
        if path == path_of(at):
            found[at] = path
    return found


def database_bytes() -> int:
    with connection.cursor() as cursor:
        if postgres():
            cursor.execute("SELECT pg_database_size(current_database())")
            return int(cursor.fetchone()[0])
        pages, size = (cursor.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        return int(pages * size)


def write(path: Path, check: Check = lambda: None) -> None:
    """Raises JobError where it cannot be made, or what was restored from it is something else."""
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    remove_torn(folder, NAMES)  # of others who keep theirs there, nothing
    require_space(folder, 2 * database_bytes(), "A backup and its trial", "where backups are kept")
    with replacing(path) as temporary:
        temporary.touch(mode=0o600)  # it holds what only this site may know
        copy, restored = (dump_postgres, restored_postgres) if postgres() else (copy_sqlite, restored_sqlite)
        counts = copy(temporary, check)
        compare(counts, restored(temporary, check))


def compare(counts: Counts, restored: Counts) -> None:
    if counts != restored:
        wrong = [table for table in {*counts, *restored} if counts.get(table) != restored.get(table)]
        said = f"{wrong[0]} has {restored.get(wrong[0], 0):,} rows where the database had {counts.get(wrong[0], 0):,}"
        raise unusable(f"restored from the backup, {said}")


def unusable(why: str) -> JobError:
    return JobError("CORRUPT_DATA", f"The backup was not kept: {why}.", "Older ones stay. Run mistudio doctor.")


# ---- SQLite


def database_file() -> Path:
    return Path(settings_of_database()["NAME"])


def copy_sqlite(target: Path, check: Check) -> Counts:
    """In one read transaction: what is counted is what is copied, whatever others write meanwhile."""
    with closing(sqlite3.connect(database_file(), isolation_level=None)) as here:
        here.execute("BEGIN")
        counts = counted(here)
        with closing(sqlite3.connect(target)) as copy:
            here.backup(copy, pages=PAGES, progress=lambda *_: check())
            copy.execute("PRAGMA journal_mode=DELETE")  # one file
    return counts


def counted(database: sqlite3.Connection) -> Counts:
    tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    names = [name.replace('"', '""') for (name,) in tables.fetchall()]
    return {name: database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names}


def restored_sqlite(backup: Path, check: Check) -> Counts:
    scratch = backup.with_name(f"{backup.stem}.trial.tmp")
    try:
        shutil.copy(backup, scratch)  # with its mode
        return examine_sqlite(scratch, check)
    finally:
        scratch.unlink(missing_ok=True)


def examine_sqlite(path: Path, check: Check = lambda: None) -> Counts:
    """Rows of each table of a sound database. Raises JobError."""
    with closing(sqlite3.connect(path)) as database:
        database.set_progress_handler(check, 10**6)
        try:
            found = [str(row[0]) for row in database.execute("PRAGMA integrity_check(3)").fetchall()]
            dangling = database.execute("PRAGMA foreign_key_check").fetchone()
            counts = counted(database)
        except sqlite3.DatabaseError as error:
            check()  # what it raised inside is told as an interruption
            raise unusable(f"{path.name} cannot be read: {error}") from error
    if found != ["ok"]:
        raise unusable(f"the integrity check found {'; '.join(found)}")
    if dangling:
        raise unusable(f"a row of {dangling[0]} refers to one of {dangling[2]} that is not there")
    return counts


def restore_sqlite(backup: Path) -> Path | None:
    """Put it in the database's place, whole or not at all. Returns where the one before is. Raises InvalidInput."""
    target = database_file()
    try:
        if "django_migrations" not in examine_sqlite(backup):
            raise unusable(f"{backup.name} is no database of miStudio")
    except JobError as error:
        raise InvalidInput(error.message, "Give another backup.", "backup") from error
    before = target.with_name(f"{target.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}")
    connection.close()
    with replacing(target) as temporary:
        temporary.touch(mode=0o600)
        shutil.copyfile(backup, temporary)
        if target.exists():
            merge_log(target)
            link_or_copy(target, before)
        for suffix in ("-wal", "-shm"):  # of a damaged or lost database: SQLite must not merge them into this one
            if (log := target.with_name(target.name + suffix)).exists():
                log.rename(before.with_name(before.name + suffix))
    return before if before.exists() else None


def merge_log(path: Path) -> None:
    """Into the file, which SQLite refuses while anybody else has it open; a damaged one stays as it is. Raises
    InvalidInput."""
    with path.open("rb") as file:
        if file.read(len(HEADER)) != HEADER:
            return
    try:
        with closing(sqlite3.connect(path, timeout=1)) as database:
            database.execute("PRAGMA journal_mode=DELETE").fetchone()
    except sqlite3.OperationalError as error:
        hint = "Stop the site, the workers and the monitor first."
        raise InvalidInput(f"The database is in use: {error}.", hint, "backup") from error
    except sqlite3.DatabaseError:
        return


# ---- PostgreSQL


def dump_postgres(target: Path, check: Check) -> Counts:
    """Of one snapshot: what is counted is what is copied, whatever others write meanwhile."""
    with closing(connect_postgres()) as here, here.cursor() as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        snapshot = cursor.execute("SELECT pg_export_snapshot()").fetchone()[0]
        counts = counted_postgres(here)
        options = ("--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}", f"--file={target}")
        tool("pg_dump", *options, check=check)
    return counts


def restored_postgres(backup: Path, check: Check) -> Counts:
    import psycopg
    from psycopg import sql

    scratch = f"{settings_of_database()['NAME']}_restore_trial"
    name = sql.Identifier(scratch)
    with closing(connect_postgres()) as server:
        try:
            server.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(name))
            server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(name))
        except psycopg.errors.InsufficientPrivilege as error:
            said = "its trial needs a scratch database, which the database's user may not create"
            raise unusable(f"{said} (ALTER ROLE … CREATEDB allows it)") from error
        try:
            restore_postgres(backup, scratch, check)
            with closing(connect_postgres(scratch)) as there:
                return counted_postgres(there)
        finally:
            server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))


def restore_postgres(backup: Path, database: str, check: Check = lambda: None) -> None:
    """In one transaction: whole or not at all. database: the scratch one, or "" for that of the site."""
    options = ("--clean", "--if-exists", "--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error")
    tool("pg_restore", *options, f"--dbname={database or settings_of_database()['NAME']}", str(backup), check=check)


def others_connected() -> int:
    """To the database of this site, beside who asks. The server needs a moment to notice that one is gone."""
    asks = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    connection.close()
    with closing(connect_postgres()) as here:
        deadline = time.monotonic() + NOTICE
        while (n := int(here.execute(asks).fetchone()[0])) and time.monotonic() < deadline:
            time.sleep(0.05)
    return n


def counted_postgres(database: Any) -> Counts:
    from psycopg import sql

    tables = database.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()").fetchall()
    count = sql.SQL("SELECT count(*) FROM {}")
    return {name: database.execute(count.format(sql.Identifier(name))).fetchone()[0] for (name,) in tables}


def connect_postgres(database: str = "") -> Any:
    import psycopg

    known = settings_of_database()
    return psycopg.connect(
        dbname=database or known["NAME"],
        user=known["USER"] or None,
        password=known["PASSWORD"] or None,
        host=known["HOST"] or None,
        port=known["PORT"] or None,
        autocommit=True,
    )


def tool(name: str, *options: str, check: Check) -> None:
    """Raises JobError with the tool's own words."""
    known = settings_of_database()
    told = {"PGDATABASE": known["NAME"], "PGUSER": known["USER"], "PGPASSWORD": known["PASSWORD"]}
    told |= {"PGHOST": known["HOST"], "PGPORT": str(known["PORT"])}
    env = {**os.environ, **{key: value for key, value in told.items() if value}}
    try:
        process = subprocess.Popen([name, *options], env=env, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError as error:
        hint = f"Install PostgreSQL's client programs on the machine that runs the cpu queue: it needs {name}."
        raise JobError("NOT_FOUND", f"{name} is not installed.", hint) from error
    with process:
        try:
            while process.poll() is None:
                check()
                time.sleep(0.05)
        except BaseException:
            process.kill()
            raise
        said = process.stderr.read() if process.stderr else ""
    if process.returncode:
        raise unusable(f"{name} says: {hidden(said.strip()[-1000:])}")
