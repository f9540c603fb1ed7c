from typing import Any

from django.db.models import Count, Exists, F, Func, QuerySet, Subquery
from django.http import HttpRequest, HttpResponseRedirect
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST

from jobs.live import Topic, own_team, publish, team_of
from jobs.models import Job, JobEvent, QueuePause, State, Worker
from jobs.models.worker import FRESH
from mistudio.models import ActivationCache, Dataset, LanguageModel, Sae, Team, Template, Tokenization, Training
from monitoring.models import Alert

THEMES = ("system", "light", "dark")
COUNTED = (LanguageModel, Dataset, Tokenization, ActivationCache, Training, Template, Sae)  # in the navigation


def shell(request: HttpRequest) -> dict[str, Any]:
    """What the frame of every page shows: navigation with counts, jobs under way, theme."""
    user = getattr(request, "user", None)
    theme = request.COOKIES.get("theme", "system")
    base = {"theme": theme if theme in THEMES else "system"}
    administration = request.resolver_match and request.resolver_match.app_name == "admin"
    if administration or user is None or not user.is_authenticated or user.team is None:
        return base
    work = under_way(user.team.pk)
    nav = navigation(request.path, user.team, work["running_jobs"], staff=user.is_staff)
    return {**base, "team": user.team, **work, "nav": nav}


def under_way(team: int) -> dict[str, Any]:
    states = Job.objects.of_team(team).filter(state__in=State.unfinished()).order_by().values_list("state")
    counted = dict(states.annotate(n=Count("pk")))
    events = JobEvent.objects.filter(job__team=team).order_by("-pk").values("pk")
    rest = Exists(Worker.objects.alive()), n_of(Alert.objects.loud()), Subquery(events[:1])
    worker_alive, alerts, last_event = Team.objects.values_list(*rest).get(pk=team)
    paused = list(QueuePause.objects.order_by("queue"))
    return {
        "running_jobs": counted.get(State.RUNNING, 0),
        "queued_jobs": counted.get(State.QUEUED, 0),
        "worker_alive": worker_alive,
        "open_alerts": alerts,
        # The numbers stay the same when one job ends as another begins, or when a short one comes and goes.
        "last_event": ".".join(str(pk) for pk in (last_event or 0, *(pause.pk for pause in paused))),
        "paused_queues": paused,
    }


def n_of(rows: QuerySet) -> Subquery:
    """How many, as a part of another query."""
    return Subquery(rows.order_by().annotate(n=Func(F("pk"), function="COUNT")).values("n"))


def counts(team: Team, *models: Any) -> dict[Any, int]:
    """How many rows of each model the team has; one query for all of them."""
    columns: list[Any] = [n_of(model.objects.of_team(team)) for model in models]
    found = Team.objects.filter(pk=team.pk).values_list(*columns).get()
    return dict(zip(models, found, strict=True))


def navigation(path: str, team: Team, running: int, staff: bool) -> list[tuple[str, list[dict[str, Any]]]]:
    def item(
        label: str, name: str, icon: str, count: int | None = None, pin: bool = False, also: str = ""
    ) -> dict[str, Any]:
        url = reverse(name)
        current = path == url if name == "home" else path.startswith((url, reverse(also or name)))
        return {"label": label, "url": url, "icon": icon, "count": count, "current": current, "pin": pin}

    many = counts(team, *COUNTED)

    return [
        ("", [item("Home", "home", "home", pin=True)]),
        (
            "Build",
            [
                item("Models", "languagemodels", "model", many[LanguageModel]),
                item("Datasets", "datasets", "data", many[Dataset]),
                item("Tokenizations", "tokenizations", "cache", many[Tokenization]),
                item("Caches", "activationcaches", "columns", many[ActivationCache]),
                item("Trainings", "trainings", "train", many[Training], pin=True),
                item("Templates", "templates", "star", many[Template]),
            ],
        ),
        ("Understand", [item("SAEs", "saes", "sae", many[Sae], pin=True)]),
        (
            "Machine",
            [
                item("Operations", "operations", "ops", running or None, pin=True, also="jobs"),
                item("Monitor", "monitor", "monitor"),
                *([item("Upkeep", "upkeep", "queued")] if staff else []),
            ],
        ),
    ]


def live(key: str) -> str:
    return render_to_string("_work.html", under_way(int(key)))


# A worker that is killed, or comes back after a while, tells nobody.
topic = Topic(visible=own_team, render=live, of_job=team_of, interval=1.0, old_after=lambda html: FRESH.total_seconds())


def tell_all(created: bool = True, **kwargs: Any) -> None:
    """Alerts, paused queues and workers are of the installation: every header shows them. Not each heartbeat."""
    if created:
        publish(*[f"shell.{team}" for team in Team.objects.values_list("pk", flat=True)])


@require_POST
def theme(request: HttpRequest) -> HttpResponseRedirect:
    back = request.POST.get("next", "")
    if not url_has_allowed_host_and_scheme(back, allowed_hosts={request.get_host()}):
        back = reverse("home")
    response = HttpResponseRedirect(back)
    chosen = request.POST.get("theme")
    if chosen in THEMES:
        response.set_cookie("theme", chosen, max_age=365 * 24 * 3600, samesite="Lax")
    return response
