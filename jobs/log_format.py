"""How log records are written: a line for people or, with MISTUDIO_LOG_FORMAT=json, one JSON object in each line.

Imported with the settings, before any model."""

import contextlib
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jobs.secrets import hidden

if TYPE_CHECKING:
    from jobs.models import Job

# A process runs, or supervises, one job at a time; all its threads speak of it.
job_here: dict[str, Any] = {}


@contextlib.contextmanager
def speaking_of(job: "Job") -> Iterator[None]:
    """Every JSON line of this process names the job, for as long as the block lasts."""
    job_here.update(job=job.pk, kind=job.kind, attempt=job.attempt, user=job.owner_id)
    try:
        yield
    finally:
        job_here.clear()


class Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return hidden(super().format(record))


class JsonLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": hidden(record.getMessage()),
            **({"user": user} if (user := user_of(record)) else {}),
            **{name: value for name, value in job_here.items() if value is not None},
        }
        if record.exc_info:
            said["exception"] = hidden(self.formatException(record.exc_info))
        return json.dumps(said)


def user_of(record: logging.LogRecord) -> int | None:
    """Who asked, where a view has looked that up already: a log line costs no query."""
    person = getattr(getattr(record, "request", None), "_cached_user", None)
    return person.pk if person else None
