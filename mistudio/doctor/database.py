import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.checks import CheckMessage, Error, Info, Warning
from django.db import DatabaseError, connection

from jobs import schema
from jobs.doctor import counted, examines
from jobs.ml.disk import size
from jobs.secrets import hidden

SECONDS = 20.0  # for reading a whole SQLite file
LONG_LOG = 2**30  # bytes of a write-ahead log that nobody could merge


@examines("database")
def database() -> Iterator[CheckMessage]:
    try:
        yield from of_schema(schema.unapplied(), schema.newer())
        if connection.vendor == "sqlite":
            yield from of_sqlite(connection)
    except DatabaseError as error:
        where = settings_of(connection)
        hint = "Is its server up, and DATABASE_URL right?" if connection.vendor != "sqlite" else RESTORE
        yield Error(f"The database {where} refuses: {hidden(str(error)).strip()}.", hint=hint)


RESTORE = "Stop miStudio, keep a copy of the file, and bring the last backup back."


def settings_of(connection: Any) -> str:
    known = connection.settings_dict
    return f"{known['NAME']}{' on ' + known['HOST'] if known['HOST'] else ''}"


def of_schema(missing: list[str], newer: list[str]) -> Iterator[CheckMessage]:
    if missing:
        said = f"{counted(len(missing), 'migration')} not applied, the first {missing[0]}."
        yield Error(said, hint="Run: mistudio migrate")
    if newer:
        said = f"The database was changed by a newer miStudio: {', '.join(newer)}."
        yield Error(said, hint="Bring that version back, or restore a backup of the time before.")
    if not missing and not newer:
        yield Info(f"Answers, and all {len(schema.known())} migrations are applied.")


def of_sqlite(connection: Any) -> Iterator[CheckMessage]:
    with connection.cursor() as cursor:
        mode = cursor.execute("PRAGMA journal_mode").fetchone()[0]
        file = cursor.execute("PRAGMA database_list").fetchone()[2]
    if mode != "wal":
        said = f"SQLite's journal is “{mode}”, not “wal”: pages and jobs will wait for each other."
        yield Error(said, hint="Is the file on a disk of this machine, and may its folder be written?")
    log = Path(f"{file}-wal")
    if log.exists() and log.stat().st_size > LONG_LOG:
        said = f"SQLite's log {log.name} has {size(log.stat().st_size)}: a reader has kept it from being merged."
        yield Warning(said, hint="Restart the site and its workers.")
    yield from of_content(damage(connection), Path(file).stat().st_size)


def of_content(found: list[str] | None, n_bytes: int) -> Iterator[CheckMessage]:
    if found is None:
        said = f"SQLite's {size(n_bytes)} were not read to the end within {SECONDS:.0f} s; no damage until then."
        yield Warning(said, hint="Look again when the machine has less to do.")
    elif found != ["ok"]:
        yield Error(f"The SQLite file is damaged: {'; '.join(found)}.", hint=RESTORE)
    else:
        yield Info(f"SQLite's {size(n_bytes)} are undamaged.")


def damage(connection: Any, seconds: float = SECONDS) -> list[str] | None:
    """["ok"], or the first of what SQLite finds wrong; None when the time was over before. Raises DatabaseError."""
    deadline = time.monotonic() + seconds
    over = False

    def late() -> bool:
        nonlocal over
        over = time.monotonic() > deadline
        return over

    with connection.cursor() as cursor:
        connection.connection.set_progress_handler(late, 10_000)
        try:
            return [" ".join(str(row[0]).split()) for row in cursor.execute("PRAGMA quick_check(5)").fetchall()]
        except DatabaseError:
            if over:
                return None
            raise
        finally:
            connection.connection.set_progress_handler(None, 0)
