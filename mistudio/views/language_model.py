from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from mistudio.forms.language_model import LanguageModelForm
from mistudio.models import LanguageModel
from mistudio.views.artifact import again, creation, deletion, found, listing, owned, topics
from mistudio.views.hub import look_first, looked_up


@require_GET
def languagemodels(request: HttpRequest) -> HttpResponse:
    return listing(request, owned(request, LanguageModel), "language_model/list.html")


@require_GET
def languagemodel(request: HttpRequest, pk: int) -> HttpResponse:
    model = found(request, LanguageModel, pk)
    context = {
        "object": model,
        "job": model.job,
        "users": model.users(),
        "again": again(model, LanguageModelForm),
        "topics": topics(model),
    }
    return render(request, "language_model/detail.html", context)


@require_http_methods(["GET", "POST"])
def languagemodel_new(request: HttpRequest) -> HttpResponse:
    if "look" in request.POST:
        return look_first(request)
    return creation(request, LanguageModelForm, "language_model/new.html", context=looked_up(request, "model"))


@require_POST
def languagemodel_delete(request: HttpRequest, pk: int) -> HttpResponse:
    return deletion(request, LanguageModel, pk)
