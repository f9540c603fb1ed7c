"""Kills the writing of a backup, and then its restoration, at each change that they make to the disk. Prints, as JSON,
the rows that the copy and the database had after each kill.

python -m tests.mistudio.kill_backups DATABASE
"""

import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import tests.settings  # noqa: F401  a data folder that ends with this process
from tests.kill_points import run


def rows(path: Path) -> int | None:
    if not path.exists():
        return None
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("SELECT count(*) FROM note").fetchone()[0])


def empty(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("DELETE FROM note")


def killed(work: Callable[[], object], folder: Path) -> Iterator[int]:
    """First at the first change, then at the second, until it comes to its end."""
    once = SimpleNamespace(run=lambda *_: work(), Params=dict, STAGES={})
    n = 1
    while not run(once, {}, folder, kill_at=n):
        yield n
        n += 1


def main(database: Path) -> None:
    import django

    django.setup()
    from mistudio import backups

    backups.database_file, backups.database_bytes = (lambda: database), (lambda: 10_000)
    backups.postgres = lambda: False
    copy, written, restored = database.parent / "backups" / "mistudio-20260101T000000Z.sqlite3", [], []
    for _ in killed(lambda: backups.write(copy), copy.parent):
        written.append(rows(copy))
        copy.unlink(missing_ok=True)
    assert [path.name for path in copy.parent.iterdir()] == [copy.name], "nothing half is left"
    empty(database)
    for _ in killed(lambda: backups.restore_sqlite(copy), database.parent):
        restored.append(rows(database))
        empty(database)
    assert rows(database) == 100
    sys.stdout.write(json.dumps([written, restored]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
