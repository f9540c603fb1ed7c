from functools import partial
from typing import Any

from django.db.models import prefetch_related_objects
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from jobs.kinds.sources import is_path
from jobs.live import together
from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.errors import WithHint
from mistudio.evaluated import at_the_end, counts
from mistudio.evidence import density_figure
from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.export import SaeExportForm
from mistudio.forms.sae import UploadedSaeForm
from mistudio.forms.scan import ScanForm
from mistudio.models import Sae, Scan, Training
from mistudio.models.hub_token import token_of
from mistudio.security import too_large
from mistudio.views.artifact import asked_for, creation, deletion, found, listing, owned, topics
from mistudio.views.hub import bounded


@require_GET
def saes(request: HttpRequest) -> HttpResponse:
    rows = owned(request, Sae).select_related("language_model")
    here = rows.exclude(architecture="").order_by("architecture").values_list("architecture", flat=True).distinct()
    kinds = [(name, ARCHITECTURES[name].label if name in ARCHITECTURES else name) for name in here]
    kind = request.GET.get("architecture", "")
    asked = {"training": asked_for(request, Training, "training"), "architecture": kind if kind in dict(kinds) else ""}
    return listing(request, rows, "sae/list.html", narrowed=asked, kinds=kinds)


@require_GET
def sae(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, Sae, pk, "language_model", "training__tokenization__dataset", "scan")
    scans = list(row.scans.select_related("job", "tokenization"))
    evaluations = list(row.evaluations.select_related("job", "tokenization"))
    exports = list(row.exports.select_related("job"))
    users = [*scans, *evaluations, *exports]
    prefetch_related_objects([one.job for one in users if one.job and one.job.unfinished], "events")
    live = [topic for one in (row, *users) if not one.ready for topic in topics(one)]
    form = ScanForm(team=row.team, owner=row.owner, sae=row)
    newest = row.scan
    context = {
        "object": row,
        "job": row.job,
        "scans": scans,
        "exports": exports,
        "export_form": SaeExportForm(team=row.team, owner=row.owner, sae=row, auto_id="export_%s")
        if row.ready
        else None,
        "scan": newest,
        "evaluations": evaluations,
        "evaluation": next((one for one in evaluations if one.ready), None),
        "measured": at_the_end(row.metrics),
        "counts": counts(row.metrics),
        "densities": density_figure(newest) if newest else "",
        "form": form,
        "users": users,
        "topics": live[:8],
    }
    with together():  # all its jobs say for what they wait
        return render(request, "sae/detail.html", context)


@require_http_methods(["GET", "POST"])
def sae_new(request: HttpRequest) -> HttpResponse:
    kwargs: dict[str, Any] = {"look": partial(seen, request), "too_large": too_large(request)}
    return creation(request, UploadedSaeForm, "sae/new.html", **kwargs)


def seen(request: HttpRequest, form: ArtifactForm) -> dict[str, Any]:
    """What the source holds, before anything of it is taken; or why it cannot be imported."""
    assert isinstance(form, UploadedSaeForm)
    form.is_valid()
    source = form.cleaned_data.get("source", "")
    if form.found or not source or is_path(source) or form.archive():
        return {"found": form.found}
    try:
        data = form.cleaned_data
        form.found = bounded(
            look_hub, source, data.get("path", ""), data.get("revision", ""), token_of(request.user.pk)
        )
    except (WithHint, OSError) as error:
        return {"trouble": str(error), "hint": getattr(error, "hint", "")}
    if "language_model" in data and not form.errors:
        form.check_sites(data, data["language_model"])
    return {"found": form.found}


@require_POST
def sae_delete(request: HttpRequest, pk: int) -> HttpResponse:
    return deletion(request, Sae, pk)


@require_http_methods(["GET", "POST"])
def scan_new(request: HttpRequest, sae_pk: int) -> HttpResponse:
    row = found(request, Sae, sae_pk, "training__tokenization")
    return creation(request, ScanForm, "scan/new.html", context={"sae": row}, sae=row)


@require_GET
def scan(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, Scan, pk, "sae__language_model", "tokenization__dataset")
    context = {"object": row, "job": row.job, "sae": row.sae, "topics": topics(row)}
    return render(request, "scan/detail.html", context)


@require_POST
def scan_delete(request: HttpRequest, pk: int) -> HttpResponse:
    return deletion(request, Scan, pk)


@require_GET
def scans(request: HttpRequest) -> HttpResponse:
    """Scans are listed on the pages of their SAEs."""
    return redirect("saes")


def look_hub(source: str, path: str, revision: str, token: str, seconds: float) -> Any:
    from jobs.ml.formats.look import look_hub as ask  # late: the hub's client takes a quarter of a second to import

    return ask(source, path, revision, token, seconds)
