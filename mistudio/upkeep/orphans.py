"""Folders that no row names: what a crash between a row and its files leaves."""

import json
import shutil
import time as clock
from collections.abc import Iterator
from datetime import time
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import Max

from jobs.context import Context
from jobs.folders import bytes_of, strays
from jobs.models import Job, State
from jobs.upkeep.task import Needless, Step, Task
from mistudio.models import ARTIFACTS

OLD = 24 * 3600.0  # seconds since anything in it was last written


def steps(ctx: Context) -> Iterator[Step]:
    for room, model in rooms().items():
        yield from of_room(room, model)


def rooms() -> dict[str, type[Any]]:
    """Folder of the data folder → whose rows have a folder in it under their number."""
    return {**{model.ROOM: model for model in ARTIFACTS}, "jobs": Job}


def newest(model: type[Any]) -> int:
    return model._default_manager.aggregate(newest=Max("pk"))["newest"] or 0


def of_room(room: str, model: type[Any]) -> Iterator[Step]:
    there, last = set(model._default_manager.values_list("pk", flat=True)), newest(model)
    for folder in strays(settings.MISTUDIO_DATA / room, there).folders:
        what = f"{room}/{folder.name}"
        if int(folder.name) > last:
            said = f"{what} belongs to no row, and is newer than all: was the database set back? If not, delete it."
            yield Step(what, "folder left", None, bytes=bytes_of(folder), wrong=said)
        elif not in_use(folder):
            yield Step(what, "folder removed", partial(remove, folder, model), bytes=bytes_of(folder))


def in_use(folder: Path) -> bool:
    """Somebody wrote there a short while ago, or an unfinished job may."""
    if max(map(touched_at, (folder, *folder.rglob("*")))) > clock.time() - OLD:
        return True
    params = unfinished_params()
    return any(f"{folder}{end}" in params for end in '"/')


def touched_at(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:  # somebody else is just removing it
        return clock.time()


def unfinished_params() -> str:
    rows = Job.objects.filter(state__in=State.unfinished()).values_list("params", flat=True)
    return json.dumps(list(rows), ensure_ascii=False)


def remove(folder: Path, model: type[Any]) -> str:
    if folder.is_symlink():
        raise Needless("it is a link")
    if model._default_manager.filter(pk=int(folder.name)).exists() or in_use(folder):
        raise Needless("it is used again")
    shutil.rmtree(folder)
    return ""


task = Task(
    "Folders without a row",
    "Removes folders of the data folder that no row names, when nothing in them was written for a day. Those that are "
    "newer than all rows are left, and told: the database may have been set back.",
    time(2, 50),
    steps,
)
