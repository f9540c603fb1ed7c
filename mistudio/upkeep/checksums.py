"""Reads files of finished objects again, the longest unread first, and compares them with what was written."""

from collections.abc import Callable, Iterator
from datetime import datetime, time, timedelta
from functools import partial
from typing import Any

from django.utils import timezone

from jobs.context import Context
from jobs.kinds.verify_model import remember
from jobs.ml import whole
from jobs.ml.store import read_json_if_there, write_json
from jobs.upkeep.task import Step, Task
from mistudio.models import ARTIFACTS, Artifact, LanguageModel, Sae, Training

AGAIN = timedelta(days=30)  # after an object was read
AT_ONCE = 100 * 10**9  # bytes of a run
READ = "verified.json"  # beside the files: when they were last read, and what was wrong


def steps(ctx: Context) -> Iterator[Step]:
    now, left = timezone.now(), AT_ONCE
    due = [(at, row) for row in finished() if (at := last_read(row)) < now - AGAIN]
    for _, row in sorted(due, key=lambda pair: pair[0]):
        n_bytes = sum(entry["bytes"] for entry in row.expected_files().values())
        if n_bytes and left > 0:  # the one that exceeds it is read to its end
            left -= n_bytes
            what = f"{row.spoken()} ({row.pk})"
            yield Step(what, "object read", partial(read, row, ctx), bytes=n_bytes)


def finished() -> Iterator[Artifact]:
    for model in ARTIFACTS:
        rows: Any = model._default_manager.exclude(ready_at=None).order_by("pk")
        if model is not Training:  # whose files are those of its SAEs
            yield from rows.select_related("training") if model is Sae else rows


def last_read(row: Artifact) -> datetime:
    """When its files were last read, or written."""
    if isinstance(row, LanguageModel):
        at = row.verified_at
    else:
        said = read_json_if_there(row.result_folder / READ).get("at")
        at = datetime.fromisoformat(said) if said else None
    assert row.ready_at is not None  # it is finished
    return max(at, row.ready_at) if at else row.ready_at


def read(row: Artifact, ctx: Context) -> str:
    def advance(n: int) -> None:
        ctx.check()

    damage = read_model(row, advance) if isinstance(row, LanguageModel) else row.damage(advance)
    if row.result_folder.is_dir() and not isinstance(row, LanguageModel):
        write_json(row.result_folder / READ, {"at": timezone.now().isoformat(), "damage": damage})
    said = ", ".join(damage[:3]) + (f" and {len(damage) - 3} more" if len(damage) > 3 else "")
    return f"{row.spoken()[0].upper()}{row.spoken()[1:]} ({row.pk}): {said}." if damage else ""


def read_model(row: LanguageModel, advance: Callable[[int], None]) -> list[str]:
    """As its own verification does: a damaged one is used by no job until it was fetched again."""
    damaged = whole.examine(row.folder, row.files, advance)
    remember(row.folder, damaged)
    LanguageModel.objects.filter(pk=row.pk).update(damaged=damaged, verified_at=timezone.now())
    return [f"{name} {wrong}" for name, wrong in damaged.items()]


task = Task(
    "Checksums",
    f"Reads the files of each finished object again once in {AGAIN.days} days, {AT_ONCE // 10**9} GB a night, and "
    "compares them with the checksums of when they were written.",
    time(1, 0),
    steps,
)
