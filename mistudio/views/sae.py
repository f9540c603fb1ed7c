from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from mistudio.evidence import density_figure
from mistudio.forms.scan import ScanForm
from mistudio.models import Sae, Scan
from mistudio.views.artifact import creation, deletion, found, listing, owned, topics


@require_GET
def saes(request: HttpRequest) -> HttpResponse:
    return listing(request, owned(request, Sae).select_related("language_model", "training"), "sae/list.html")


@require_GET
def sae(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, Sae, pk, "language_model", "training__tokenization__dataset", "scan")
    scans = list(row.scans.select_related("job", "tokenization"))
    evaluations = list(row.evaluations.select_related("job", "tokenization"))
    live = [topic for one in (*evaluations, *scans) if not one.ready for topic in topics(one)]
    form = ScanForm(team=row.team, owner=row.owner, sae=row)
    newest = row.scan
    context = {
        "object": row,
        "scans": scans,
        "scan": newest,
        "evaluations": evaluations,
        "evaluation": next((one for one in evaluations if one.ready), None),
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
