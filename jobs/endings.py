"""How an attempt ends: from what is known of it to the move of its job. Supervisor and reaper judge alike."""

import dataclasses
import signal
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction

from jobs.errors import HINTS, suggestion_of
from jobs.kinds import load_kind, make_params
from jobs.logs import last_lines, log_path
from jobs.models import Job, QueuePause, State
from jobs.outcome import NO_SPACE, Outcome
from jobs.queue import nudge, resume, submit

MOST_LOSSES = 3  # of workers in a row without progress
MOST_SHRINKS = 3
# A kill from outside says nothing against the job; a crash (SIGSEGV, SIGABRT ...) would happen again.
FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
TOLD: dict[str, tuple[State, str]] = {
    "cancel": (State.CANCELLED, "cancelled"),
    "pause": (State.PAUSED, "paused"),
    "stop": (State.QUEUED, "worker stopped"),
}
ENDED: dict[str, str] = {"cancelled": "cancel", "paused": "pause", "stopped": "stop"}


@dataclass(frozen=True)
class Ending:
    to: State
    why: str
    fields: dict[str, Any] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)


def judge(job: Job, outcome: Outcome | None, *, told: str = "", exit_code: int | None = None, oom: str = "") -> Ending:
    """`told`: what we asked of it last. `exit_code` is None when nobody saw its end. `oom`: the kernel's words."""
    fields = {"exit_code": exit_code}
    if outcome and outcome.how == "succeeded":
        return succeeded(outcome, fields)
    if told == "cancel":
        return Ending(*TOLD["cancel"], fields)
    if outcome and outcome.how == "failed":
        return failed(job, {**outcome.error, "detail": outcome.detail}, fields)
    word = told or (ENDED[outcome.how] if outcome else "")
    unheard = word == "stop" or not word and exit_code is None  # what was wished for last came too late
    if unheard and (job.wish == "cancel" or job.wish == "pause" and job.ability("RESUMABLE")):
        word = job.wish
    if word:
        return Ending(*TOLD[word], fields)
    return without_a_word(job, exit_code, oom, fields)


def succeeded(outcome: Outcome, fields: dict[str, Any]) -> Ending:
    done = {"result": outcome.result, "percent": 100, "eta_seconds": None}
    return Ending(State.SUCCEEDED, "succeeded", {**fields, **done})


def failed(job: Job, error: dict[str, Any], fields: dict[str, Any]) -> Ending:
    """`error`: a Failure as a dict, with `detail` if there is more to say."""
    code = error["code"]
    suggestion = error.get("suggestion") or suggestion_of(code)
    if code == "OUT_OF_MEMORY":
        suggestion = smaller_suggestion(job) or suggestion
    told = {
        "error_code": code,
        "error_message": error["message"],
        "error_hint": error.get("hint") or HINTS[code],
        "error_detail": error.get("detail") or last_lines(log_path(job)),
        "suggestion": suggestion,
        "eta_seconds": None,
    }
    return Ending(State.FAILED, "failed", {**fields, **told}, {"code": code, "message": error["message"]})


def without_a_word(job: Job, exit_code: int | None, oom: str, fields: dict[str, Any]) -> Ending:
    if exit_code is None:
        return lost(job, "worker lost", fields)
    if exit_code == NO_SPACE:
        message = "There was no space left on the disk to write how the job ended."
        return failed(job, {"code": "DISK_FULL", "message": message}, fields)
    if exit_code >= 0:
        message = f"The process ended with exit code {exit_code} without saying why."
        return failed(job, {"code": "UNKNOWN", "message": message}, fields)
    number = signal.Signals(-exit_code)
    if number == signal.SIGKILL and oom:
        return failed(job, {"code": "OUT_OF_MEMORY", "message": oom}, fields)
    if number in FROM_OUTSIDE:
        return lost(job, f"process killed by {number.name}", fields)
    message = f"The process crashed with {number.name} (signal {number.value})."
    return failed(job, {"code": "UNKNOWN", "message": message}, fields)


def lost(job: Job, why: str, fields: dict[str, Any] | None = None) -> Ending:
    """Queued again where it makes sense, else failed with figures."""
    losses = 1 if job.percent > job.percent_at_start else job.losses + 1
    fields = {**(fields or {}), "losses": losses}
    facts = {
        "attempt": job.attempt,
        "pid": job.pid,
        "host": job.host.split("/")[0],
        "percent": round(job.percent, 1),
        "heartbeat_at": job.heartbeat_at.isoformat() if job.heartbeat_at else None,
    }
    resumable = job.ability("RESUMABLE")
    if resumable and losses < MOST_LOSSES:
        return Ending(State.QUEUED, why, fields, facts)
    again = f" {losses} times in a row without progress" if resumable else ""
    message = (
        f"{why.capitalize()}{again}: attempt {job.attempt}, process {job.pid or 'not started'} "
        f"on {facts['host']}, at {job.percent:.1f} %, last heartbeat {facts['heartbeat_at']}."
    )
    ending = failed(job, {"code": "WORKER_LOST", "message": message}, fields)
    return dataclasses.replace(ending, detail={**ending.detail, **facts})


def smaller_params(job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters that need less memory, and which of them changed; both empty when the kind knows none."""
    kind = load_kind(job.kind)
    less = None
    if hasattr(kind, "smaller"):
        now = make_params(kind, job.params)
        less = kind.smaller(now)
    if less is None:
        return {}, {}
    before, after = dataclasses.asdict(now), dataclasses.asdict(less)
    return after, {name: value for name, value in after.items() if value != before[name]}


def smaller_suggestion(job: Job) -> dict[str, Any]:
    _, changed = smaller_params(job)
    said = [f"{name.replace('_', ' ')} {f'{v:,}' if isinstance(v, int) else v}" for name, v in changed.items()]
    return {"label": f"Retry with {', '.join(said)}", "overrides": changed} if changed else {}


def settle(job: Job, ending: Ending) -> bool:
    """Make the move, and what follows from it, in one transaction. False when the job is not ours any more."""
    with transaction.atomic():
        if not job.move(ending.to, ending.why, ending.detail, **ending.fields):
            return False
        if ending.to == State.QUEUED:
            nudge(job.queue)
        if ending.to == State.PAUSED and paused_with_its_queue(job):
            resume(job)
        if ending.to == State.FAILED and job.error_code == "OUT_OF_MEMORY":
            retry_smaller(job)
    return True


def paused_with_its_queue(job: Job) -> bool:
    """And was the queue resumed before the job could obey?"""
    asked = job.events.filter(what="pause requested").last()
    with_queue = asked is not None and "queue" in asked.detail
    return with_queue and not QueuePause.objects.filter(queue=job.queue).exists()


def retry_smaller(job: Job) -> None:
    less, changed = smaller_params(job)
    if not changed or job.shrinks >= MOST_SHRINKS:
        return
    again = submit(
        job.kind,
        less,
        team=job.team,
        owner=job.owner,
        subject=job.subject,
        title=job.title,
        retry_of=job,
        shrinks=job.shrinks + 1,
        priority=job.priority,
    )
    job.note("retried with less memory", job=again.pk, changed=changed)
