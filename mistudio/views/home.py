from typing import Any

from django.db.models import Count, Q, Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.urls import reverse
from django.views.decorators.http import require_GET

from jobs.live import Topic, own_team, team_of
from jobs.models import Job, State
from mistudio.models import Dataset, Feature, LanguageModel, Sae, Team, Tokenization, Training
from mistudio.models.artifact import Artifact, existing

SHOWN = 6


@require_GET
def home(request: HttpRequest) -> HttpResponse:
    team: Any = request.user.team  # type: ignore[union-attr]
    if team is None:
        return render(request, "no_team.html")
    return render(request, "home.html", {**now(team), "topics": [f"home.{team.pk}"]})


def now(team: Team) -> dict[str, Any]:
    jobs = Job.objects.of_team(team).select_related("owner")
    return {
        "steps": steps(team),
        "running": jobs.filter(state__in=State.unfinished()).order_by("-state", "pk")[:SHOWN],
        "failed_jobs": (failed := failed_jobs(jobs))[:SHOWN],
        "n_failed": len(failed),
        "recent_saes": Sae.objects.of_team(team).select_related("language_model").order_by("-pk")[:SHOWN],
    }


def failed_jobs(jobs: Any) -> list[Job]:
    """Of the newest hundred, those that nobody tried again or dismissed, and whose object is still there."""
    failed = list(jobs.filter(state=State.FAILED, retries__isnull=True, dismissed_at=None).order_by("-pk")[:100])
    there = existing({job.subject for job in failed})
    return [job for job in failed if job.subject in there or not job.subject]


def steps(team: Team) -> list[dict[str, Any]]:
    """The way from a model to features: what there is of each, and the one thing to do next."""
    model, data, tokens = counts(LanguageModel, team), counts(Dataset, team), counts(Tokenization, team)
    runs, saes = counts(Training, team), counts(Sae, team)
    held = Tokenization.objects.of_team(team).aggregate(n=Sum("n_tokens"))["n"] or 0
    features = Feature.objects.filter(sae__team=team).aggregate(
        n=Count("pk"), labelled=Count("pk", filter=~Q(label="")), alive=Count("pk", filter=Q(n_fired__gt=0))
    )
    newest = Sae.objects.of_team(team).filter(scans__ready_at__isnull=False).order_by("-pk").first()
    data_step = ("dataset_new", "Add dataset") if not data["all"] or tokens["all"] else ("tokenization_new", "Tokenize")
    scanned = reverse("features", args=[newest.pk]) if newest else reverse("saes")
    return [
        step("Model", model, "languagemodels", "languagemodel_new", "Add model", "language models"),
        {
            **step(
                "Data",
                data,
                "datasets",
                *data_step,
                f"{data['all']} dataset{'' if data['all'] == 1 else 's'}, {tokens['ready']} tokenized",
            ),
            "count": held,
            "unit": "tokens",
            "busy": data["busy"] or tokens["busy"],
            "done": bool(tokens["ready"]),
        },
        step("Training", runs, "trainings", "training_new", "New training", "runs"),
        step("SAE", saes, "saes", "saes", "Scan features", "sparse autoencoders"),
        {
            "title": "Features",
            "count": features["n"],
            "what": f"{features['alive']:,} alive, {features['labelled']:,} labelled",
            "url": scanned,
            "action_url": scanned,
            "action_label": "Browse",
            "done": bool(features["n"]),
            "busy": 0,
        },
    ]


def counts(model: type[Artifact], team: Team) -> dict[str, int]:
    return model.objects.of_team(team).aggregate(
        all=Count("pk"),
        ready=Count("pk", filter=Q(ready_at__isnull=False)),
        busy=Count("pk", filter=Q(job__state__in=State.unfinished())),
    )


def step(title: str, n: dict[str, int], url: str, action: str, label: str, what: str) -> dict[str, Any]:
    busy = f", {n['busy']} under way" if n["busy"] else ""
    return {
        "title": title,
        "count": n["all"],
        "what": f"{what}{busy}",
        "url": reverse(url),
        "action_url": reverse(action),
        "action_label": label,
        "done": bool(n["ready"]),
        "busy": n["busy"],
    }


def live(key: str) -> str:
    team = Team.objects.filter(pk=int(key)).first()
    return render_to_string("home/_now.html", now(team)) if team else ""


topic = Topic(visible=own_team, render=live, of_job=team_of, interval=1.0)
