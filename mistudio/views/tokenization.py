from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from mistudio.forms.tokenization import TokenizationForm
from mistudio.models import Tokenization
from mistudio.views.artifact import again, creation, deletion, found, listing, owned, topics


@require_GET
def tokenizations(request: HttpRequest) -> HttpResponse:
    return listing(
        request,
        owned(request, Tokenization).select_related("dataset", "language_model"),
        "tokenization/list.html",
    )


@require_GET
def tokenization(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, Tokenization, pk, "dataset", "language_model")
    context = {
        "object": row,
        "job": row.job,
        "users": row.users(),
        "again": again(row, TokenizationForm),
        "topics": topics(row),
    }
    return render(request, "tokenization/detail.html", context)


@require_http_methods(["GET", "POST"])
def tokenization_new(request: HttpRequest) -> HttpResponse:
    return creation(request, TokenizationForm, "tokenization/new.html")


@require_POST
def tokenization_delete(request: HttpRequest, pk: int) -> HttpResponse:
    return deletion(request, Tokenization, pk)
