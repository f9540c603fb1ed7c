from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from mistudio.forms.dataset import DatasetForm
from mistudio.models import Dataset
from mistudio.views.artifact import again, creation, deletion, found, listing, owned, topics
from mistudio.views.hub import look_first, looked_up


@require_GET
def datasets(request: HttpRequest) -> HttpResponse:
    return listing(request, owned(request, Dataset), "dataset/list.html")


@require_GET
def dataset(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, Dataset, pk)
    context = {"object": row, "job": row.job, "users": row.users(), "topics": topics(row)}
    return render(request, "dataset/detail.html", {**context, "again": again(row, DatasetForm)})


@require_http_methods(["GET", "POST"])
def dataset_new(request: HttpRequest) -> HttpResponse:
    if "look" in request.POST:
        return look_first(request)
    return creation(request, DatasetForm, "dataset/new.html", context=looked_up(request, "dataset"))


@require_POST
def dataset_delete(request: HttpRequest, pk: int) -> HttpResponse:
    return deletion(request, Dataset, pk)
