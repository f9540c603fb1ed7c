from django.http import FileResponse, Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from mistudio.forms.export import SaeExportForm
from mistudio.models import Export, Sae
from mistudio.views.artifact import creation, deletion, found, topics


@require_http_methods(["GET", "POST"])
def export_new(request: HttpRequest, sae_pk: int) -> HttpResponse:
    row = found(request, Sae, sae_pk, "language_model", "training__tokenization__dataset", "scan")
    return creation(request, SaeExportForm, "export/new.html", context={"sae": row}, sae=row)


@require_GET
def export(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, Export, pk, "sae__language_model")
    context = {"object": row, "job": row.job, "sae": row.sae, "topics": topics(row)}
    return render(request, "export/detail.html", context)


@require_GET
def export_download(request: HttpRequest, pk: int) -> HttpResponseBase:
    row = found(request, Export, pk)
    if not row.ready or not row.path.is_file():
        raise Http404
    return FileResponse(row.path.open("rb"), as_attachment=True, filename=row.archive)


@require_POST
def export_delete(request: HttpRequest, pk: int) -> HttpResponse:
    return deletion(request, Export, pk)


@require_GET
def exports(request: HttpRequest) -> HttpResponse:
    """Exports are listed on the pages of their SAEs."""
    return redirect("saes")
