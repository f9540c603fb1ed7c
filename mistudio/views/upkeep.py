"""What the site does for itself, for staff: reports name objects of every team."""

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.template.loader import render_to_string
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from jobs.live import Topic
from jobs.models import State
from jobs.upkeep.schedules import KIND, runs, schedules, start
from jobs.upkeep.task import find
from mistudio.forms.upkeep import ScheduleForm

PAGE = 20
EVERYTHING = "all"  # the one key of the topic


def staff(request: HttpRequest) -> Any:
    user: Any = request.user
    if not user.is_staff:
        raise Http404
    return user


@require_GET
def upkeep(request: HttpRequest) -> HttpResponse:
    staff(request)
    return render(request, "upkeep/list.html", {"topics": [f"{KIND}.{EVERYTHING}"]})


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
    work = runs(name).filter(state__in=State.unfinished()).first()
    context = {
        "task": find(name),
        "work": work,
        "topics": [f"jobs.{work.pk}"] if work else [],
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
    return render_to_string("upkeep/_schedules.html")


topic = Topic(visible=visible, render=live, of_job=lambda job: EVERYTHING if job.kind == KIND else None, interval=1.0)
