"""What the process of a job says at its end, in a file: the last word survives whoever should have heard it."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs.models import Job
from jobs.secrets import hidden

NO_SPACE = 74  # exit code of a process that has no room left for its outcome


@dataclass(frozen=True)
class Outcome:
    attempt: int
    how: str  # succeeded, failed, cancelled, paused or stopped
    result: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)  # a Failure
    detail: str = ""  # traceback


def outcome_path(job: Job) -> Path:
    return job.folder / "outcome.json"


def write_outcome(job: Job, outcome: Outcome) -> None:
    path = outcome_path(job)
    draft = path.with_suffix(".tmp")
    with draft.open("w") as file:
        json.dump(asdict(outcome), file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def read_outcome(job: Job) -> Outcome | None:
    """Of the current attempt; what an earlier one said does not count."""
    try:
        said = Outcome(**json.loads(outcome_path(job).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return said if said.attempt == job.attempt else None


def plain(value: Any) -> Any:
    """For JSON in any database: numbers of other libraries as Python's, no NaN, no infinity, no NUL, no surrogate,
    and no secret."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return hidden(value).encode("utf-8", "backslashreplace").decode().replace("\0", "\N{SYMBOL FOR NULL}")
    if value is None or isinstance(value, bool | int):
        return value
    if hasattr(value, "item"):
        return plain(value.item())
    if isinstance(value, float):
        return value if value - value == 0 else None
    return str(value)
