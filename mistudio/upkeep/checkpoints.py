"""Checkpoints of trainings that ended. A training keeps its newest two while it runs, and none when it succeeded."""

import shutil
import time as clock
from collections.abc import Iterator
from datetime import time
from functools import partial
from pathlib import Path

from jobs.context import Context
from jobs.folders import bytes_of
from jobs.ml.checkpoint_files import checkpoints, read_whole
from jobs.models import Job, State
from jobs.upkeep.task import Needless, Step, Task
from mistudio.models import Training

YOUNG = 24 * 3600.0  # seconds


def steps(ctx: Context) -> Iterator[Step]:
    old = clock.time() - YOUNG
    for training in Training.objects.exclude(job__state__in=State.unfinished()).select_related("job").order_by("pk"):
        folder = training.folder / "checkpoints"
        for path in superfluous(folder, training.state == "ready") if folder.is_dir() else ():
            if path.stat().st_mtime < old:
                what = f"{path.name} of “{training}” ({training.pk})"
                yield Step(what, "checkpoint removed", partial(remove, training, path), bytes=bytes_of(path))


def superfluous(folder: Path, succeeded: bool) -> list[Path]:
    """All of a training that succeeded, its result is in its SAEs. Of any other all but the newest, with which a retry
    goes on, and what was being written when it was killed."""
    whole = checkpoints(folder)
    return sorted(folder.glob(".step-*.tmp")) + (whole if succeeded else whole[:-1])


def remove(training: Training, path: Path) -> str:
    if Job.objects.filter(subject=training.subject, state__in=State.unfinished()).exists():
        raise Needless("the training goes on")
    training.refresh_from_db()
    newest = checkpoints(path.parent)[-1:]
    if training.state != "ready" and path not in newest and newest and read_whole(newest[0]) is None:
        raise Needless(f"{newest[0].name} is damaged, so a retry may need it")
    shutil.rmtree(path)
    return ""


task = Task(
    "Checkpoints",
    "Removes what nobody goes on from: all checkpoints of trainings that succeeded, and of those that failed or were "
    "cancelled a day ago all but the last. Never of one that runs, waits or is paused.",
    time(3, 10),
    steps,
)
