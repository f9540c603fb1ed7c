from functools import partial
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Count, Q, QuerySet
from django.http import FileResponse, Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.template.loader import render_to_string
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_GET, require_POST

from jobs import live, order, queue
from jobs.errors import InvalidInput
from jobs.live import Topic
from jobs.logs import log_path
from jobs.models import Job, State

PAGE = 50
TABS: tuple[tuple[str, str, tuple[str, ...]], ...] = (  # in the address, on the page, its states
    ("", "All", tuple(State)),
    (State.RUNNING, "Running", (State.RUNNING,)),
    (State.QUEUED, "Waiting", (State.QUEUED,)),
    (State.PAUSED, "Paused", (State.PAUSED,)),
    (State.FAILED, "Failed", (State.FAILED,)),
    (State.SUCCEEDED, "Finished", (State.SUCCEEDED,)),
    (State.CANCELLED, "Cancelled", (State.CANCELLED,)),
)


def owned(request: HttpRequest) -> QuerySet[Job]:
    return Job.objects.of_team(request.user.team).select_related("owner")  # type: ignore[union-attr]


def found(request: HttpRequest, pk: int) -> Job:
    """Or 404: a job of another team does not exist."""
    return get_object_or_404(seen_by(request.user).select_related("owner"), pk=pk)


def seen_by(user: Any) -> QuerySet[Job]:
    """Those of the person's team; to staff the site's own as well."""
    rows = Job.objects.of_team(user.team)
    return rows | Job.objects.filter(team=None) if user.is_staff else rows


# ---- pages


@require_GET
def jobs(request: HttpRequest) -> HttpResponse:
    chosen = {name: request.GET.get(name, "").replace("\0", "").strip() for name in ("state", "kind", "q")}
    tab = next((tab for tab in TABS if tab[0] == chosen["state"]), TABS[0])
    everything = owned(request)
    rows = matching(everything, chosen["kind"], chosen["q"])
    counts = dict(rows.order_by().values_list("state").annotate(n=Count("pk")))
    context = {
        **chosen,
        "state": tab[0],
        "tab": tab[1],
        "tabs": [
            {"key": key, "label": label, "n": sum(counts.get(s, 0) for s in states)} for key, label, states in TABS
        ],
        "filtered": bool(chosen["kind"] or chosen["q"]),
        "total": everything.count(),
        "kinds": sorted(set(everything.order_by().values_list("kind", flat=True).distinct())),
        "page_obj": Paginator(rows.filter(state__in=tab[2]).order_by("-pk"), PAGE).get_page(request.GET.get("page")),
    }
    return render(request, "jobs/list.html", context)


def matching(rows: QuerySet[Job], kind: str, q: str) -> QuerySet[Job]:
    if kind:
        rows = rows.filter(kind=kind)
    if q:
        number = Q(pk=int(q)) if q.isdecimal() and len(q) < 19 else Q()
        rows = rows.filter(Q(title__icontains=q) | Q(subject__iexact=q) | number)
    return rows


@require_GET
def job(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, pk)
    context = {"job": row, "retries": row.retries.order_by("pk"), "topics": [f"jobs.{pk}"], "open_log": True}
    return render(request, "jobs/detail.html", context)


@require_GET
def job_log(request: HttpRequest, pk: int) -> FileResponse:
    """The whole log as it is, to keep: never shown by the browser as part of this site."""
    path = log_path(found(request, pk))
    if not path.exists():
        raise Http404("This job has not written a log.")
    return FileResponse(path.open("rb"), as_attachment=True, filename=f"job-{pk}.log", content_type="text/plain")


# ---- actions


def back(request: HttpRequest, job: Job) -> HttpResponse:
    """To the page with the button: its address if it gave one, else where the browser says it was."""
    for address in (request.POST.get("next", ""), request.META.get("HTTP_REFERER", "")):
        if address and url_has_allowed_host_and_scheme(address, {request.get_host()}, request.is_secure()):
            return redirect(address)
    return redirect(job)


def act(request: HttpRequest, pk: int, action: Any, done: str, late: str) -> HttpResponse:
    row = found(request, pk)
    try:
        if action(row):
            messages.success(request, done.format(job=row))
        else:
            messages.info(request, late.format(job=row, state=row.get_state_display().lower()))
    except InvalidInput as refused:
        messages.error(request, f"{refused.message} {refused.hint}")
    return back(request, row)


@require_POST
def job_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    return act(request, pk, queue.request_cancel, "“{job}” is being cancelled.", "“{job}” had already ended.")


@require_POST
def job_pause(request: HttpRequest, pk: int) -> HttpResponse:
    return act(
        request, pk, queue.request_pause, "“{job}” saves its state and pauses.", "“{job}” does not run: {state}."
    )


@require_POST
def job_finish(request: HttpRequest, pk: int) -> HttpResponse:
    return act(
        request, pk, queue.request_finish, "“{job}” finishes with what it has.", "“{job}” does not run: {state}."
    )


@require_POST
def job_resume(request: HttpRequest, pk: int) -> HttpResponse:
    return act(request, pk, queue.resume, "“{job}” waits for a worker again.", "“{job}” is not paused: {state}.")


@require_POST
def job_order(request: HttpRequest, pk: int) -> HttpResponse:
    place = request.POST.get("place", "")
    put = partial(order.put, place=place, by=str(request.user))
    done = f"“{{job}}” is {order.PLACES.get(place)}."
    return act(request, pk, put, done, "“{job}” does not wait: {state}.")


@require_POST
def job_dismiss(request: HttpRequest, pk: int) -> HttpResponse:
    """Off the page of operations, or with `back` onto it again."""
    back = bool(request.POST.get("back"))
    dismiss = partial(Job.dismiss, dismissed=not back, by=str(request.user))
    done = "“{job}” is among the failures again." if back else "“{job}” is dismissed."
    return act(request, pk, dismiss, done, "“{job}” is as it was: {state}.")


@require_POST
def job_retry(request: HttpRequest, pk: int) -> HttpResponse:
    """Again with the same parameters, or with those of the suggestion."""
    row = found(request, pk)
    overrides = row.suggestion.get("overrides", {}) if request.POST.get("suggested") else {}
    try:
        again = queue.retry(row, overrides)
    except InvalidInput as refused:
        messages.error(request, f"{refused.message} {refused.hint}")
        return back(request, row)
    messages.success(request, f"“{again}” is queued as job {again.pk}.")
    return back(request, again) if request.POST.get("next") else redirect(again)


# ---- live


@require_GET
def fragments(request: HttpRequest) -> HttpResponse:
    """For pages without a socket: the current HTML of their topics."""
    names = list(dict.fromkeys(request.GET.getlist("t")))
    with live.together():
        if not live.allowed(request.user, names):
            raise Http404("No such topic.")
        response = HttpResponse("\n".join(live.render(name) for name in names))
    response.headers["Cache-Control"] = "no-store"
    return response


def job_visible(user: Any, key: str) -> bool:
    return key.isdecimal() and len(key) < 19 and seen_by(user).filter(pk=int(key)).exists()


def render_job(key: str) -> str:
    # Reached only by pages that `visible` let in.
    row = Job.objects.select_related("owner").filter(pk=int(key)).first()
    return render_to_string("jobs/_job.html", {"job": row}) if row else ""


job_topic = Topic(visible=job_visible, render=render_job, of_job=lambda job: str(job.pk), old_after=live.while_it_waits)
