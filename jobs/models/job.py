from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.urls import reverse
from django.utils import timezone

from jobs.kinds import KINDS, load_kind
from jobs.ownership import Owned

STALLED = timedelta(minutes=2)


class State(models.TextChoices):
    QUEUED = "queued", "Queued"
    RUNNING = "running", "Running"
    PAUSED = "paused", "Paused"
    SUCCEEDED = "succeeded", "Succeeded"
    FAILED = "failed", "Failed"
    CANCELLED = "cancelled", "Cancelled"

    @classmethod
    def unfinished(cls) -> tuple["State", ...]:
        return cls.QUEUED, cls.RUNNING, cls.PAUSED

    @classmethod
    def finished(cls) -> tuple["State", ...]:
        return cls.SUCCEEDED, cls.FAILED, cls.CANCELLED


MOVES: dict[str, tuple[State, ...]] = {
    State.QUEUED: (State.RUNNING, State.CANCELLED),
    # Back to queued: its worker stopped or was lost, and the job goes on later.
    State.RUNNING: (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.PAUSED, State.QUEUED),
    State.PAUSED: (State.QUEUED, State.CANCELLED),
    State.SUCCEEDED: (),
    State.FAILED: (),
    State.CANCELLED: (),
}
STAMPS: dict[str, str] = {State.QUEUED: "queued_at", State.RUNNING: "started_at", State.PAUSED: "paused_at"}
WISHES = ("cancel_requested_at", "pause_requested_at", "finish_requested_at")


class Job(Owned):
    """One piece of work for a worker. Its state changes by `move` alone."""

    # None: it is the site's own, as upkeep is. No team sees it; staff do.
    team = models.ForeignKey(  # type: ignore[assignment]
        settings.TEAM_MODEL, on_delete=models.CASCADE, null=True, related_name="+"
    )

    kind = models.CharField(max_length=60, editable=False)
    title = models.CharField(max_length=200, blank=True)
    subject = models.CharField(max_length=80, blank=True, editable=False)  # what it works on: "training:12"
    queue = models.CharField(max_length=20, editable=False)
    priority = models.IntegerField(default=0, editable=False)  # the larger, the sooner it starts: see `jobs.order`
    params = models.JSONField(default=dict, editable=False)
    result = models.JSONField(default=dict, editable=False)
    state = models.CharField(max_length=12, choices=State.choices, default=State.QUEUED, editable=False)
    version = models.CharField(max_length=40, blank=True, editable=False)  # of miStudio that ran it last
    retry_of = models.ForeignKey(
        "self", on_delete=models.SET_NULL, null=True, blank=True, related_name="retries", editable=False
    )
    shrinks = models.PositiveSmallIntegerField(
        default=0, editable=False
    )  # automatic retries with less memory before it

    queued_at = models.DateTimeField(default=timezone.now, editable=False)
    started_at = models.DateTimeField(null=True, editable=False)
    paused_at = models.DateTimeField(null=True, editable=False)
    finished_at = models.DateTimeField(null=True, editable=False)
    heartbeat_at = models.DateTimeField(null=True, editable=False)
    cancel_requested_at = models.DateTimeField(null=True, editable=False)
    pause_requested_at = models.DateTimeField(null=True, editable=False)
    finish_requested_at = models.DateTimeField(null=True, editable=False)
    dismissed_at = models.DateTimeField(null=True, editable=False)  # somebody saw to this failure

    # Who runs it. A pid counts only together with the host and the start of the process: pids are used again.
    attempt = models.PositiveIntegerField(default=0, editable=False)
    losses = models.PositiveSmallIntegerField(default=0, editable=False)  # lost workers since it last made progress
    host = models.CharField(max_length=200, blank=True, editable=False)
    supervisor_pid = models.PositiveIntegerField(null=True, editable=False)
    supervisor_start = models.BigIntegerField(null=True, editable=False)
    pid = models.PositiveIntegerField(null=True, editable=False)
    pid_start = models.BigIntegerField(null=True, editable=False)
    exit_code = models.IntegerField(null=True, editable=False)
    devices = models.JSONField(default=list, editable=False)  # names of the GPUs it was given, of `host`

    stage = models.CharField(max_length=60, blank=True, editable=False)
    stage_index = models.PositiveSmallIntegerField(default=0, editable=False)
    done = models.FloatField(default=0, editable=False)
    total = models.FloatField(null=True, editable=False)
    unit = models.CharField(max_length=30, blank=True, editable=False)
    percent = models.FloatField(default=0, editable=False)
    percent_at_start = models.FloatField(default=0, editable=False)  # of the current attempt
    rate = models.FloatField(null=True, editable=False)  # units per second
    eta_seconds = models.FloatField(null=True, editable=False)
    progress_at = models.DateTimeField(null=True, editable=False)

    usage = models.JSONField(default=dict, editable=False)  # by all its attempts, see `jobs.usage`

    error_code = models.CharField(max_length=30, blank=True, editable=False)
    error_message = models.TextField(blank=True, editable=False)
    error_hint = models.TextField(blank=True, editable=False)
    error_detail = models.TextField(blank=True, editable=False)  # traceback or last lines of the log
    suggestion = models.JSONField(default=dict, editable=False)  # {"label", "overrides"}

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "subject"],
                condition=models.Q(state__in=["queued", "running", "paused"]) & ~models.Q(subject=""),
                name="one_unfinished_job_per_subject",
            )
        ]
        indexes = [
            models.Index(fields=["team", "state"]),
            models.Index(fields=["state", "queue"]),
            models.Index(fields=["queue", "started_at"]),
            models.Index(fields=["subject"]),
            models.Index(fields=["finished_at"]),
            models.Index(fields=["paused_at"]),
        ]

    def __str__(self) -> str:
        return self.title or f"{self.kind} {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("job", args=[self.pk])

    @property
    def folder(self) -> Path:
        return settings.MISTUDIO_DATA / "jobs" / str(self.pk)

    @property
    def command(self) -> str:
        return f"mistudio jobs show {self.pk}"

    @property
    def unfinished(self) -> bool:
        return self.state in State.unfinished()

    @property
    def wish(self) -> str:
        """What somebody asked of it and has not happened yet; a cancel outweighs the others."""
        return next((name.split("_")[0] for name in WISHES if self.unfinished and getattr(self, name)), "")

    @property
    def can_retry(self) -> bool:
        return self.state in (State.FAILED, State.CANCELLED)

    @property
    def can_pause(self) -> bool:
        return self.state == State.RUNNING and not self.wish and self.ability("RESUMABLE")

    @property
    def can_finish_early(self) -> bool:
        return self.state == State.RUNNING and not self.wish and self.ability("FINISH_EARLY")

    @property
    def can_cancel(self) -> bool:
        return self.unfinished and self.wish != "cancel"

    def ability(self, name: str) -> bool:
        """What the kind says of itself; a kind that is no more can do nothing."""
        return self.kind in KINDS and bool(getattr(load_kind(self.kind), name, False))

    @property
    def shown_state(self) -> str:
        """The state as a reader sees it: a wish that is on its way, and silence, are derived."""
        wishes = {"cancel": "stopping", "pause": "pausing", "finish": "finishing"}
        return (self.state == State.RUNNING and wishes.get(self.wish)) or ("stalled" if self.stalled else self.state)

    @property
    def stages(self) -> list[dict[str, str]]:
        """The stages of its kind, each done, running or still to come."""
        names = list(load_kind(self.kind).STAGES) if self.kind in KINDS else []
        here = len(names) if self.state == State.SUCCEEDED else self.stage_index if self.stage else -1
        words = {True: "done", False: "todo"}
        return [{"name": name, "state": "running" if i == here else words[i < here]} for i, name in enumerate(names)]

    @property
    def stalled(self) -> bool:
        last = max(filter(None, [self.started_at, self.progress_at]), default=None)
        return self.state == State.RUNNING and last is not None and timezone.now() - last > STALLED

    @property
    def ended_at(self) -> datetime | None:
        return self.finished_at or (self.paused_at if self.state == State.PAUSED else None)

    @property
    def seconds(self) -> float | None:
        """Of the last attempt, so far."""
        if self.started_at is None or self.state == State.QUEUED:
            return None
        return max(0.0, ((self.ended_at or timezone.now()) - self.started_at).total_seconds())

    def move(self, to: str, why: str = "", detail: dict[str, Any] | None = None, **fields: Any) -> bool:
        """Change the state, with an event, or return False if somebody else changed it first.

        One conditional UPDATE: of two who try the same move, or of an old attempt and the new one, one wins."""
        if to not in MOVES[self.state]:
            raise ValueError(f"A job cannot go from {self.state} to {to}.")
        now = timezone.now()
        fields = {STAMPS.get(to, "finished_at"): now, **fields, "state": to}
        if to in (State.QUEUED, State.PAUSED):
            fields |= dict.fromkeys(WISHES) | {"rate": None, "eta_seconds": None}
        with transaction.atomic():
            mine = Job.objects.filter(pk=self.pk, state=self.state, attempt=self.attempt)
            if not mine.update(**fields):
                return False
            for name, value in fields.items():
                setattr(self, name, value)
            self.note(why or State(to).label.lower(), **{"state": to, **(detail or {})})
        return True

    def dismiss(self, dismissed: bool = True, by: str = "") -> bool:
        """Somebody saw to this failure, or did not after all. False when nothing changes."""
        at = timezone.now() if dismissed else None
        failed = Job.objects.filter(pk=self.pk, state=State.FAILED, dismissed_at__isnull=dismissed)
        with transaction.atomic():
            if not failed.update(dismissed_at=at):
                return False
            self.dismissed_at = at
            self.note("dismissed" if dismissed else "put back", **({"by": by} if by else {}))
        return True

    def note(self, what: str, **detail: Any) -> None:
        """Add to the job's history and tell the pages that show it."""
        from jobs.live import publish_job

        with transaction.atomic():
            self.events.create(what=what, detail=detail)
            publish_job(self)
