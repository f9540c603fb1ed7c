"""Rows whose files are gone. It changes nothing: where the files are, or whether they are worth it, a person knows."""

from collections.abc import Iterator
from datetime import time
from typing import Any

from jobs.context import Context
from jobs.ml import whole
from jobs.upkeep.task import Step, Task
from mistudio.models import ARTIFACTS, Artifact, LanguageModel, Sae, Training


def steps(ctx: Context) -> Iterator[Step]:
    for model in ARTIFACTS:
        rows: Any = model._default_manager.exclude(ready_at=None).order_by("pk")
        for row in rows.select_related("training") if model is Sae else rows:
            if gone := missing(row):
                said = f"{row.spoken()[0].upper()}{row.spoken()[1:]} ({row.pk}): {gone}."
                yield Step(f"{row.spoken()} ({row.pk})", "object without files", None, wrong=said)


def missing(row: Artifact) -> str:
    """In words; files of another size count. A training's are those of its SAEs."""
    if not row.folder.is_dir():
        return f"its folder {row.folder} is gone"
    if isinstance(row, Training):
        return ""
    if isinstance(row, LanguageModel):
        found = row.lost
    else:
        expected = row.expected_files()
        if not expected:
            return "its manifest.json is missing or names no file"
        files = [{"name": name, "bytes": entry["bytes"]} for name, entry in expected.items()]
        found = whole.lost(row.result_folder, files)
    more = f" and {len(found) - 1} more files" if len(found) > 1 else ""
    return next((f"{name} {wrong}{more}" for name, wrong in found.items()), "")


task = Task(
    "Missing files",
    "Reports what is ready but has lost its folder or a file of it. Reads no file and changes nothing.",
    time(3, 0),
    steps,
)
