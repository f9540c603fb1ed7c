from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from jobs.kinds.mix_datasets import MOST_PARTS
from mistudio.forms.dataset import DatasetForm
from mistudio.forms.mixture import MixtureForm, as_said
from mistudio.models import Dataset
from mistudio.views.artifact import again, creation, deletion, found, listing, owned, topics
from mistudio.views.hub import look_first, looked_up

UNSAID = ("csrfmiddlewaretoken", "submission", "more")


@require_GET
def datasets(request: HttpRequest) -> HttpResponse:
    return listing(request, owned(request, Dataset), "dataset/list.html")


@require_GET
def dataset(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, Dataset, pk)
    context: dict[str, Any] = {"object": row, "job": row.job, "users": row.users(), "topics": topics(row)}
    context |= {"again": again(row, DatasetForm)} if row.source else {"again": mixed_again(row), "parts": row.made_of}
    return render(request, "dataset/detail.html", context)


@require_http_methods(["GET", "POST"])
def dataset_new(request: HttpRequest) -> HttpResponse:
    if "look" in request.POST:
        return look_first(request)
    return creation(request, DatasetForm, "dataset/new.html", context=looked_up(request, "dataset"))


@require_http_methods(["GET", "POST"])
def mixture_new(request: HttpRequest) -> HttpResponse:
    if "more" in request.POST:  # the same form with more rows, in an address of its own
        said = {name: value for name, value in request.POST.items() if value and name not in UNSAID}
        rows = max(int(request.POST["more"]), 1) if request.POST["more"].isdecimal() else 1
        return redirect(f"{reverse('mixture_new')}?{urlencode({**said, 'rows': min(rows, MOST_PARTS)})}")
    return creation(request, MixtureForm, "dataset/mix.html")


def mixed_again(row: Dataset) -> str:
    return f"{reverse('mixture_new')}?{urlencode(as_said(row))}"


@require_POST
def dataset_delete(request: HttpRequest, pk: int) -> HttpResponse:
    return deletion(request, Dataset, pk)
