from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from jobs.ml.architectures import ARCHITECTURES
from mistudio.evidence import density_figure
from mistudio.forms.scan import ScanForm
from mistudio.models import Sae, Scan, Training
from mistudio.views.artifact import asked_for, creation, deletion, found, listing, owned, topics


@require_GET
def saes(request: HttpRequest) -> HttpResponse:
    rows = owned(request, Sae).select_related("language_model", "training")
    here = rows.order_by("architecture").values_list("architecture", flat=True).distinct()
    kinds = [(name, ARCHITECTURES[name].label if name in ARCHITECTURES else name) for name in here]
    kind = request.GET.get("architecture", "")
    asked = {"training": asked_for(request, Training, "training"), "architecture": kind if kind in dict(kinds) else ""}
    return listing(request, rows, "sae/list.html", narrowed=asked, kinds=kinds)


@require_GET
def sae(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, Sae, pk, "language_model", "training__tokenization__dataset", "scan")
    scans = list(row.scans.select_related("job", "tokenization"))
    live = [topic for scan in scans if not scan.ready for topic in topics(scan)]
    form = ScanForm(team=row.team, owner=row.owner, sae=row)
    newest = row.scan
    context = {
        "object": row,
        "scans": scans,
        "scan": newest,
        "densities": density_figure(newest) if newest else "",
        "form": form,
        "users": row.users(),
        "topics": live[:8],
    }
    return render(request, "sae/detail.html", context)


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
