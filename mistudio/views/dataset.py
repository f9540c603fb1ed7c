from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from jobs.kinds.mix_datasets import MOST_PARTS
from mistudio.forms.dataset import DatasetForm
from mistudio.forms.mixture import MixtureForm, as_said
from mistudio.forms.upload import UploadedDatasetForm
from mistudio.models import Dataset
from mistudio.models.dataset import READABLE
from mistudio.security import too_large
from mistudio.views.artifact import address, again, creation, deletion, found, listing, owned, topics
from mistudio.views.hub import look_first, looked_up


@require_GET
def datasets(request: HttpRequest) -> HttpResponse:
    return listing(request, owned(request, Dataset), "dataset/list.html", readable=READABLE)


@require_GET
def dataset(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, Dataset, pk)
    context: dict[str, Any] = {"object": row, "job": row.job, "users": row.users(), "topics": topics(row)}
    parts = {} if row.source else {"parts": row.made_of}
    return render(request, "dataset/detail.html", {**context, **parts, "again": make_again(row)})


@require_http_methods(["GET", "POST"])
def dataset_new(request: HttpRequest) -> HttpResponse:
    if "look" in request.POST:
        return look_first(request)
    context = looked_up(request, "dataset")
    return creation(request, UploadedDatasetForm, "dataset/new.html", context=context, too_large=too_large(request))


@require_http_methods(["GET", "POST"])
def mixture_new(request: HttpRequest) -> HttpResponse:
    if "more" in request.POST:  # the same form with more rows, in an address of its own
        rows = max(int(request.POST["more"]), 1) if request.POST["more"].isdecimal() else 1
        return redirect(address(request.path, request.POST, "more", rows=min(rows, MOST_PARTS)))
    return creation(request, MixtureForm, "dataset/mix.html")


def make_again(row: Dataset) -> str:
    """Of uploaded files, those that are still here; else the form names the files to choose again."""
    if not row.source:
        return f"{reverse('mixture_new')}?{urlencode(as_said(row))}"
    if not row.uploaded:
        return again(row, DatasetForm)
    kept = ",".join(str(pk) for pk in row.uploads.values_list("pk", flat=True))
    return again(row, DatasetForm, source="", uploads=kept, choose="" if kept else row.source)


@require_POST
def dataset_delete(request: HttpRequest, pk: int) -> HttpResponse:
    return deletion(request, Dataset, pk)
