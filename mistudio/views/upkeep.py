"""What the site does for itself, for staff: reports name objects of every team."""

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.template.loader import render_to_string
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from jobs.live import Topic
from jobs.models import Job, Schedule
from jobs.upkeep.schedules import KIND, newest, runs, schedules, start, subject_of
from jobs.upkeep.task import Task, find
from mistudio.forms.upkeep import ScheduleForm

PAGE = 20
EVERYTHING = "all"  # the one key of the topic


@dataclass(frozen=True)
class Entry:
    """A task as the page shows it. A dry run is shown as long as no run followed it."""

    schedule: Schedule
    task: Task
    run: Job | None
    dry_run: Job | None

    @property
    def latest(self) -> list[Job]:
        return [job for job in (self.dry_run, self.run) if job and (job is self.run or not self.outdated)]

    @property
    def outdated(self) -> bool:
        return bool(self.run and self.dry_run and self.run.pk > self.dry_run.pk)


def staff(request: HttpRequest) -> Any:
    user: Any = request.user
    if not user.is_staff:
        raise Http404
    return user


def entries() -> list[Entry]:
    jobs = newest()
    return [
        Entry(schedule, find(name), jobs.get(subject_of(name, False)), jobs.get(subject_of(name, True)))
        for schedule in schedules()
        if (name := schedule.task)
    ]


@require_GET
def upkeep(request: HttpRequest) -> HttpResponse:
    staff(request)
    return render(request, "upkeep/list.html", {"entries": entries(), "topics": [f"{KIND}.{EVERYTHING}"]})


@require_http_methods(["GET", "POST"])
def upkeep_task(request: HttpRequest, name: str) -> HttpResponse:
    staff(request)
    schedule = get_object_or_404(schedules(), task=name)
    form = ScheduleForm(request.POST if request.method == "POST" else None, instance=schedule)
    if form.is_valid():
        saved = form.save()
        said = f"runs {saved.said} from now on" if saved.enabled else "runs only when somebody asks for it"
        messages.success(request, f"“{find(name).label}” {said}.")
        return redirect("upkeep")
    context = {
        "task": find(name),
        "schedule": schedules().get(task=name),  # as it is, not as it was typed
        "form": form,
        "page_obj": Paginator(runs(name).select_related("owner"), PAGE).get_page(request.GET.get("page")),
        "command": f"mistudio upkeep {name}",
    }
    return render(request, "upkeep/detail.html", context, status=422 if form.errors else 200)


@require_POST
def upkeep_run(request: HttpRequest, name: str) -> HttpResponse:
    user = staff(request)
    if name not in settings.UPKEEP:
        raise Http404
    job = start(name, dry_run="dry_run" in request.POST, owner=user)
    messages.success(request, f"“{job}” is job {job.pk}.")
    return redirect("upkeep")


def visible(user: Any, key: str) -> bool:
    return user.is_staff and key == EVERYTHING


def live(key: str) -> str:
    return render_to_string("upkeep/_schedules.html", {"entries": entries()})


topic = Topic(visible=visible, render=live, of_job=lambda job: EVERYTHING if job.kind == KIND else None, interval=1.0)
