from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from mistudio.forms.dataset import DatasetForm
from mistudio.forms.upload import UploadedDatasetForm
from mistudio.models import Dataset
from mistudio.security import too_large
from mistudio.views.artifact import again, creation, deletion, found, listing, owned, topics


@require_GET
def datasets(request: HttpRequest) -> HttpResponse:
    return listing(request, owned(request, Dataset), "dataset/list.html")


@require_GET
def dataset(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, Dataset, pk)
    context = {"object": row, "job": row.job, "users": row.users(), "topics": topics(row)}
    return render(request, "dataset/detail.html", {**context, "again": make_again(row)})


@require_http_methods(["GET", "POST"])
def dataset_new(request: HttpRequest) -> HttpResponse:
    return creation(request, UploadedDatasetForm, "dataset/new.html", too_large=too_large(request))


def make_again(row: Dataset) -> str:
    """Of uploaded files, those that are still here; else the form names the files to choose again."""
    if not row.uploaded:
        return again(row, DatasetForm)
    kept = ",".join(str(pk) for pk in row.uploads.values_list("pk", flat=True))
    return again(row, DatasetForm, source="", uploads=kept, choose="" if kept else row.source)


@require_POST
def dataset_delete(request: HttpRequest, pk: int) -> HttpResponse:
    return deletion(request, Dataset, pk)
