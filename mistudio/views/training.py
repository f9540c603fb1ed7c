from operator import itemgetter
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from jobs.live import Topic, while_it_waits
from jobs.models import Job, Metric
from mistudio.figures import Line, lines_chart
from mistudio.forms.training import TrainingForm
from mistudio.models import Training
from mistudio.models.plan import best_of_each
from mistudio.side_by_side import heads, of_one_kind, ordered, side_by_side, tradeoff
from mistudio.views.artifact import again, creation, deletion, found, listing, owned, topics

CHARTS: tuple[tuple[str, str, str, str, float, dict[str, Any]], ...] = (
    # metric, heading, unit, meaning, times, how it is drawn
    ("fvu", "FVU", "", "Fraction of variance unexplained, 1 − EV, per batch", 1, {"smooth": True, "y_min": 0}),
    ("loss", "Loss", "", "What the optimizer minimises: of each kind another sum", 1, {"smooth": True}),
    ("l0", "L0", "latents", "Active latents per token", 1, {"y_min": 0}),
    ("ce_recovered", "CE recovered", "", "Of held-out predictions, against zero ablation", 1, {"y_max": 1}),
    ("dead", "Dead latents", "%", "Silent on the last tenth of the run, 10 M tokens at most", 100, {"y_min": 0}),
    (
        "tokens_per_second",
        "Throughput",
        "tokens/s",
        "Tokens per second from point to point",
        1,
        {"y_min": 0, "smooth": True},
    ),
    ("memory", "Memory", "GiB", "Of the process or, on a GPU, of its tensors there", 2**-30, {"y_min": 0}),
    ("lr", "Learning rate", "", "Size of the optimizer's steps", 1, {"y_min": 0}),
)

FEW = 8  # lines
MAGNITUDES = ("loss", "l0")  # in which kinds may differ by some; their lines stand by the logarithm then
APART = 20.0  # times higher than the lowest line the highest ends
OF_THE_RUN = ("tokens_per_second", "memory")  # the others are of each SAE


@require_GET
def trainings(request: HttpRequest) -> HttpResponse:
    rows = owned(request, Training).select_related("language_model", "tokenization").prefetch_related("saes")
    return listing(request, rows, "training/list.html")


@require_GET
def training(request: HttpRequest, pk: int) -> HttpResponse:
    """Once its SAEs are there, they can be ordered; the order is the reader's, so that page follows no news of it."""
    row = found(request, Training, pk, "language_model", "tokenization__dataset")
    sort = request.GET.get("sort", "") if row.ready else ""
    live = [] if sort else [f"trainings.{pk}"]
    context = {**live_context(row, sort), "users": row.users(), "topics": [*live, *topics(row)]}
    return render(request, "training/detail.html", context)


@require_http_methods(["GET", "POST"])
def training_new(request: HttpRequest) -> HttpResponse:
    return creation(request, TrainingForm, "training/new.html")


@require_GET
def plan(request: HttpRequest) -> HttpResponse:
    """The fragment that follows the form while it is filled in."""
    user: Any = request.user
    form = TrainingForm(request.GET, team=user.team, owner=user)
    return render(request, "training/_plan.html", {"form": form, "plan": form.plan})


@require_POST
def training_delete(request: HttpRequest, pk: int) -> HttpResponse:
    return deletion(request, Training, pk)


def live_context(row: Training, sort: str = "") -> dict[str, Any]:
    """What the live part shows: the newest metrics and a chart of each, over all attempts and retries."""
    points = Metric.history(row.subject, at_most=300)
    latest = points[-1][1] if points else {}
    reads = row.reads
    chosen = ",".join(share.word(share.cache_id) for share in reads)
    saes = side_by_side(row, points)
    return {
        "object": row,
        "job": row.job,
        "reads": reads,
        "again": again(row, TrainingForm, caches=chosen, **row.options),
        "latest": latest,
        "saes": ordered(saes, sort),
        "heads": heads(sort),
        "tradeoff": tradeoff(saes),
        "of_one_kind": of_one_kind(saes),
        "best": best_of_each(saes, itemgetter("rebuilds"), itemgetter("ev")),
        "one": saes[0] if len(saes) == 1 else None,
        "speed": speed(row),
        "charts": charts(row, points, len(saes)),
    }


def speed(row: Training) -> float | None:
    """Tokens per second: of the whole run once it has ended, of the last seconds while it goes on."""
    if row.result.get("seconds"):
        return row.result["tokens"] / row.result["seconds"]
    return row.job.rate if row.job and row.job.unit == "tokens" else None


def charts(row: Training, points: list[tuple[int, dict[str, float]]], n_saes: int) -> list[dict[str, Any]]:
    """A figure for each metric, with a line for each SAE."""
    drawn = []
    for name, heading, unit, meaning, times, how in CHARTS:
        keys = {f"{name}.{n}": str(n + 1) for n in range(n_saes)} if name not in OF_THE_RUN else {name: ""}
        lines = [
            Line([(step * row.batch_tokens, times * values[key]) for step, values in points if key in values], label)
            for key, label in keys.items()
        ]
        if not any(line.points for line in lines):
            continue
        log = name in MAGNITUDES and apart([line.points[-1][1] for line in lines if line.points])
        height = 140 if len(lines) <= FEW else 240  # room for the numbers at the ends
        figure = lines_chart(
            lines, height=height, title=heading, unit=unit, x_max=row.n_tokens, x_label="tokens", log=log, **how
        )
        now = lines[0].points[-1][1] if len(lines) == 1 else None
        drawn.append({"heading": heading, "unit": unit, "meaning": meaning, "now": now, "figure": figure})
    return drawn


def apart(ends: list[float]) -> bool:
    """Would the lowest line lie flat on the axis below the highest?"""
    return 0 < APART * min(ends) < max(ends)


def visible(user: Any, key: str) -> bool:
    return key.isdecimal() and Training.objects.of_team(user.team).filter(pk=int(key)).exists()


def live(key: str) -> str:
    # Reached only by pages that `visible` let in.
    row = Training.objects.select_related("job", "owner", "language_model").filter(pk=int(key)).first()
    return render_to_string("training/_live.html", live_context(row)) if row else ""


def of_job(job: Job) -> str | None:
    return job.subject.removeprefix("training:") if job.subject.startswith("training:") else None


topic = Topic(visible=visible, render=live, of_job=of_job, interval=0.5, old_after=while_it_waits)
