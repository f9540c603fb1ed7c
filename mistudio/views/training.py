from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from jobs.live import Topic
from jobs.models import Job, Metric
from mistudio.figures import line_chart
from mistudio.forms.training import TrainingForm
from mistudio.models import Training
from mistudio.views.artifact import again, creation, deletion, found, listing, owned, topics

CHARTS: tuple[tuple[str, str, str, str, float, dict[str, Any]], ...] = (
    # metric, heading, unit, meaning, times, how it is drawn
    ("fvu", "FVU", "", "Fraction of variance unexplained, per batch", 1, {"smooth": True, "y_min": 0}),
    ("loss", "Loss", "", "What the optimizer minimises", 1, {"smooth": True}),
    ("l0", "L0", "latents", "Active latents per token", 1, {"y_min": 0}),
    ("dead", "Dead latents", "%", "Latents that have not fired for the dead window", 100, {"y_min": 0}),
    ("tokens_per_second", "Throughput", "tokens/s", "Tokens trained on per second", 1, {"y_min": 0, "smooth": True}),
    ("lr", "Learning rate", "", "Size of the optimizer's steps", 1, {"y_min": 0}),
)


@require_GET
def trainings(request: HttpRequest) -> HttpResponse:
    rows = owned(request, Training).select_related("language_model", "tokenization", "sae")
    return listing(request, rows, "training/list.html")


@require_GET
def training(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, Training, pk, "language_model", "tokenization__dataset", "sae")
    context = {**live_context(row), "users": row.users(), "topics": [f"trainings.{pk}", *topics(row)]}
    return render(request, "training/detail.html", context)


@require_http_methods(["GET", "POST"])
def training_new(request: HttpRequest) -> HttpResponse:
    return creation(request, TrainingForm, "training/new.html")


@require_POST
def training_delete(request: HttpRequest, pk: int) -> HttpResponse:
    return deletion(request, Training, pk)


def live_context(row: Training) -> dict[str, Any]:
    """What the live part shows: the newest metrics and a chart of each, over all attempts and retries."""
    points = Metric.history(row.subject, at_most=300)
    latest = points[-1][1] if points else {}
    reads = row.reads
    chosen = ",".join(share.word(share.cache_id) for share in reads)
    return {
        "object": row,
        "job": row.job,
        "reads": reads,
        "again": again(row, TrainingForm, caches=chosen),
        "latest": latest,
        "speed": speed(row),
        "charts": charts(row, points),
        "sae": saved_sae(row),
    }


def speed(row: Training) -> float | None:
    """Tokens per second: of the whole run once it has ended, of the last seconds while it goes on."""
    if row.result.get("seconds"):
        return row.result["tokens"] / row.result["seconds"]
    return row.job.rate if row.job and row.job.unit == "tokens" else None


def saved_sae(row: Training) -> Any:
    return getattr(row, "sae", None)


def charts(row: Training, points: list[tuple[int, dict[str, float]]]) -> list[dict[str, Any]]:
    drawn = []
    for name, heading, unit, meaning, times, how in CHARTS:
        series = [(step * row.batch_tokens, times * values[name]) for step, values in points if name in values]
        if series:
            figure = line_chart(series, title=heading, unit=unit, x_max=row.n_tokens, x_label="tokens", **how)
            drawn.append({"heading": heading, "unit": unit, "meaning": meaning, "now": series[-1][1], "figure": figure})
    return drawn


def visible(user: Any, key: str) -> bool:
    return key.isdecimal() and Training.objects.of_team(user.team).filter(pk=int(key)).exists()


def live(key: str) -> str:
    # Reached only by pages that `visible` let in.
    row = Training.objects.select_related("job", "sae").filter(pk=int(key)).first()
    return render_to_string("training/_live.html", live_context(row)) if row else ""


def of_job(job: Job) -> str | None:
    return job.subject.removeprefix("training:") if job.subject.startswith("training:") else None


topic = Topic(visible=visible, render=live, of_job=of_job, interval=0.5)
