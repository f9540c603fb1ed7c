"""The page of what runs, waits and failed, and where: /operations/. It is live; what it shows of a team is bounded."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.db.models import Count, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from jobs import live
from jobs.live import Topic
from jobs.models import Job, State
from jobs.order import line
from jobs.queue import QUEUES, pause_queue, resume_queue
from jobs.queues import Standing, standings

SHOWN, FAILURES = 30, 6
RECENT = timedelta(days=7)


@dataclass(frozen=True)
class Turn:
    """A job that waits, and how many of its queue start before it, those of other teams with them."""

    job: Job
    before: int
    queue: Standing


def now(team: Any) -> dict[str, Any]:
    """Of a team, or of its key. Sixteen queries at most, however much there is."""
    jobs = Job.objects.of_team(team).select_related("owner")
    queues = standings()
    turns = [(waiting, n, queue) for queue in queues for n, waiting in enumerate(line(queue.name))]
    key = getattr(team, "pk", team)
    ours = [turn for turn in turns if turn[0].team == key]
    rows = jobs.in_bulk([waiting.pk for waiting, _, _ in ours[:SHOWN]])
    running, paused, failures = jobs.filter(state=State.RUNNING), jobs.filter(state=State.PAUSED), recent(jobs)
    counts = dict(jobs.order_by().values_list("state").annotate(n=Count("pk")))
    return {
        "team_key": key,
        "queues": queues,
        "running": list(running.order_by("started_at", "pk")[:SHOWN]),
        "n_running": counts.get(State.RUNNING, 0),
        "waiting": [Turn(rows[w.pk], before, queue) for w, before, queue in ours[:SHOWN] if w.pk in rows],
        "n_waiting": len(ours),
        "paused": list(paused.order_by("-paused_at")[:SHOWN]),
        "n_paused": counts.get(State.PAUSED, 0),
        "failures": list(failures.order_by("-finished_at")[:FAILURES]),
        "n_failures": failures.count(),
    }


def recent(jobs: QuerySet[Job], dismissed: bool = False) -> QuerySet[Job]:
    """Failures of the last week that nobody tried again."""
    failed = jobs.filter(state=State.FAILED, finished_at__gt=timezone.now() - RECENT, retries=None)
    return failed.filter(dismissed_at__isnull=not dismissed)


@require_GET
def operations(request: HttpRequest) -> HttpResponse:
    user: Any = request.user
    if user.team is None:
        return render(request, "no_team.html")
    jobs = Job.objects.of_team(user.team).select_related("owner")
    dismissed = recent(jobs, dismissed=True)
    context = {
        **now(user.team),
        "topics": [f"operations.{user.team.pk}", *(["upkeep.all"] if user.is_staff else [])],
        "n_dismissed": dismissed.count(),
        "dismissed": dismissed.order_by("-dismissed_at")[:SHOWN] if request.GET.get("dismissed") else (),
    }
    return render(request, "operations/detail.html", context)


@require_POST
def failures_dismiss(request: HttpRequest) -> HttpResponse:
    """All that the page speaks of, of the own team."""
    user: Any = request.user
    n = sum(job.dismiss(by=str(user)) for job in recent(Job.objects.of_team(user.team)))
    messages.success(request, f"{n} failure{'' if n == 1 else 's'} dismissed.")
    return redirect("operations")


# ---- queues: they belong to the installation, so its staff pauses them


def queue_for_staff(request: HttpRequest, name: str) -> str:
    if not request.user.is_staff or name not in QUEUES:
        raise Http404
    return name


@require_POST
def queue_pause(request: HttpRequest, name: str) -> HttpResponse:
    queue, at_once = queue_for_staff(request, name), bool(request.POST.get("now"))
    new = pause_queue(queue, by=request.user, reason=request.POST.get("reason", ""), now=at_once)
    then = "What can go on later saves its state and pauses." if at_once else "What runs goes on to its end."
    messages.success(request, f"The {queue} queue {'is' if new else 'was already'} paused. {then}")
    return redirect("operations")


@require_POST
def queue_resume(request: HttpRequest, name: str) -> HttpResponse:
    queue = queue_for_staff(request, name)
    if resume_queue(queue):
        messages.success(request, f"The {queue} queue starts jobs again.")
    else:
        messages.info(request, f"The {queue} queue was not paused.")
    return redirect("operations")


def render_operations(key: str) -> str:
    return render_to_string("operations/_now.html", now(int(key)))


# Workers, slots and jobs of other teams change without events of this team: it is rendered while somebody watches.
topic = Topic(visible=live.own_team, render=render_operations, interval=2.0, old_after=live.at_each_interval)
