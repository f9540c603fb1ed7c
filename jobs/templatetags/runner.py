"""What the fragments of jobs show besides the row. They need nothing but `job`, so that any page can include them."""

from typing import Any

from django import template
from django.conf import settings
from django.utils.module_loading import import_string

from jobs.kinds import KINDS, load_kind
from jobs.logs import last_lines, log_path
from jobs.models import Job, State
from jobs.order import line
from jobs.queues import standings
from jobs.usage import Figure, at_rest, figures_of

register = template.Library()

LINES = 12  # as many as the box shows without scrolling
ICONS: dict[str, tuple[str, str]] = {  # of an event, by the state it led to: tone, icon
    State.QUEUED: ("is-idle", "queued"),
    State.RUNNING: ("is-running", "running"),
    State.PAUSED: ("is-idle", "pause"),
    State.SUCCEEDED: ("is-ok", "ok"),
    State.FAILED: ("is-fail", "fail"),
    State.CANCELLED: ("is-idle", "x"),
}


@register.filter
def kind_label(kind: str) -> str:
    return load_kind(kind).LABEL if kind in KINDS else kind


@register.simple_tag
def log_tail(job: Job) -> str:
    return last_lines(log_path(job), LINES)


@register.filter
def used(job: Job) -> dict[str, Figure]:
    """What its processes use, by the names of `jobs.usage`; what was not measured is not there."""
    return figures_of(job.usage if job.state == State.RUNNING else at_rest(job.usage))


@register.simple_tag
def subject_url(job: Job) -> str:
    """The page of what the job works on; empty when there is none (any more)."""
    path = getattr(settings, "SUBJECT_URL", "")
    return (path and job.subject and import_string(path)(job.subject)) or ""


@register.simple_tag
def waits_for(job: Job) -> dict[str, Any]:
    """What a queued job waits for: how its queue stands, and how many start before it."""
    (queue,) = [standing for standing in standings() if standing.name == job.queue]
    turns = [waiting.pk for waiting in line(job.queue)]
    return {"queue": queue, "before": turns.index(job.pk) if job.pk in turns else 0}


@register.simple_tag
def timeline(job: Job) -> list[dict[str, Any]]:
    """The events, oldest first, with icon, tone and the figures worth a line."""
    shown = []
    for event in job.events.all():
        tone, icon = ICONS.get(event.detail.get("state", ""), ("is-idle", "dot"))
        if event.what in ("worker lost",) or event.what.startswith("process killed"):
            tone, icon = "is-warn", "warn"
        shown.append({"at": event.at, "what": event.what, "tone": tone, "icon": icon, "note": note(event.detail)})
    return shown


def note(detail: dict[str, Any]) -> str:
    parts = []
    if "message" in detail:
        parts.append(str(detail["message"])[:200])
    if "attempt" in detail:
        parts.append(f"attempt {detail['attempt']} at {detail['percent']:g} %")
    if "by" in detail:
        parts.append(f"by {detail['by']}")
    if "queue" in detail:
        parts.append(f"with the {detail['queue']} queue")
    if "pid" in detail and "host" in detail:
        parts.append(f"process {detail['pid'] or 'not started'} on {detail['host']}")
    parts += [
        f"{word} job {detail[key]}" for key, word in (("retry_of", "again after"), ("job", "as")) if key in detail
    ]
    return ", ".join(parts)
