"""The database, copied and tried out, and the older copies that are no longer needed."""

from collections.abc import Iterable, Iterator
from datetime import datetime, time
from functools import partial
from pathlib import Path

from django.utils import timezone

from jobs.context import Context
from jobs.errors import JobError, classify
from jobs.upkeep.task import Step, Task
from mistudio import backups

DAYS, WEEKS = 7, 4  # of which one backup is kept each, the newest


def steps(ctx: Context) -> Iterator[Step]:
    now = timezone.now()
    path = backups.path_of(now)
    what = f"{path}, restored beside the database and compared"
    yield Step(what, "backup written", partial(write, path, ctx), bytes=backups.database_bytes())
    there = backups.there()
    stay = kept([*there, now])
    for at, old in there.items():
        if at not in stay:
            yield Step(old.name, "backup removed", partial(remove, old), bytes=old.stat().st_size)


def write(path: Path, ctx: Context) -> str:
    """The older ones are removed only when this one was restored. Raises JobError, which ends the run."""
    try:
        backups.write(path, ctx.check)
    except OSError as error:
        found = classify(error)
        raise JobError(found.code, f"The backup was not written: {found.message}", found.hint) from error
    return ""


def kept(moments: Iterable[datetime]) -> set[datetime]:
    """The newest of each of the last days and weeks of which there are any."""
    newest_first = sorted(moments, reverse=True)
    days: dict[object, datetime] = {}
    weeks: dict[object, datetime] = {}
    for at in newest_first:
        days.setdefault(at.date(), at)
        weeks.setdefault(at.isocalendar()[:2], at)
    return {*list(days.values())[:DAYS], *list(weeks.values())[:WEEKS]}


def remove(path: Path) -> str:
    path.unlink(missing_ok=True)
    return ""


task = Task(
    "Database backup",
    "Copies the database while it is in use, restores the copy into a scratch database and compares both. Keeps the "
    f"newest of {DAYS} days and of {WEEKS} weeks.",
    time(2, 30),
    steps,
)
