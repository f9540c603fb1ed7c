from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from mistudio.evaluated import densities, groups, missing
from mistudio.forms.evaluation import EvaluationForm
from mistudio.models import Evaluation, Sae
from mistudio.views.artifact import again, creation, deletion, found, topics


@require_GET
def evaluations(request: HttpRequest) -> HttpResponse:
    """Evaluations are listed on the pages of their SAEs."""
    return redirect("saes")


@require_http_methods(["GET", "POST"])
def evaluation_new(request: HttpRequest, sae_pk: int) -> HttpResponse:
    row = found(request, Sae, sae_pk, "language_model")
    return creation(request, EvaluationForm, "evaluation/new.html", context={"sae": row}, sae=row)


@require_GET
def evaluation(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, Evaluation, pk, "sae__language_model", "tokenization__dataset", "labelled")
    context = {
        "object": row,
        "job": row.job,
        "sae": row.sae,
        "groups": groups(row.figures),
        "classes": row.result.get("classes", []),
        "densities": densities(row.result),
        "missing": missing(row.result),
        "again": again(row, EvaluationForm, row.sae_id, sae=None),
        "topics": topics(row),
    }
    return render(request, "evaluation/detail.html", context)


@require_POST
def evaluation_delete(request: HttpRequest, pk: int) -> HttpResponse:
    return deletion(request, Evaluation, pk)
