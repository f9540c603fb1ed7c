import socket
from functools import partial
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from jobs import devices
from jobs.models import Job, State
from mistudio import measurements, memory
from mistudio.forms.language_model import LanguageModelForm, MeasureForm, NoteForm, RecommendationForm
from mistudio.models import LanguageModel
from mistudio.structure import parts
from mistudio.views.artifact import again, creation, deletion, found, listing, owned, started, topics
from mistudio.views.hub import look_first, looked_up

WORK = ("verify_model", "restore_model", "measure_model")  # jobs on a model beside the one that makes it


@require_GET
def languagemodels(request: HttpRequest) -> HttpResponse:
    return listing(request, owned(request, LanguageModel), "language_model/list.html")


@require_GET
def languagemodel(request: HttpRequest, pk: int) -> HttpResponse:
    model = found(request, LanguageModel, pk)
    work, users = unfinished_work(model), model.users()
    context = {
        "object": model,
        "job": model.job,
        "work": work,
        "users": users,
        "usage": model.usage(users),
        "again": again(model, LanguageModelForm),
        "topics": [*topics(model), *([f"jobs.{work.pk}"] if work else [])],
        **(described(model) if model.ready else {}),
    }
    return render(request, "language_model/detail.html", context)


def unfinished_work(model: LanguageModel) -> Job | None:
    """The newest job on it, unless it ended well: then the page shows what it found."""
    newest = Job.objects.of_team(model.team).filter(subject=model.subject, kind__in=WORK).order_by("-pk").first()
    return newest if newest and newest.state not in (State.SUCCEEDED, State.CANCELLED) else None


def described(model: LanguageModel) -> dict[str, Any]:
    seen = measurements.observations(model.team, model).get(model.pk, [])
    memories = devices.memories()
    needs = memory.needs(model, seen, memories)
    return {
        "parts": parts(model),
        "needs": needs,
        "memories": memories,
        "advice": memory.advice(needs),
        "host": socket.gethostname(),
        "speeds": measurements.table(seen),
        "loads": measurements.loads(seen),
        "failures": measurements.failures(seen),
        "measure_form": MeasureForm(),
        "note_form": NoteForm(instance=model),
        "wrong_files": sorted((model.lost or model.damaged).items()),
    }


@require_http_methods(["GET", "POST"])
def languagemodel_new(request: HttpRequest) -> HttpResponse:
    if "look" in request.POST:
        return look_first(request)
    return creation(request, LanguageModelForm, "language_model/new.html", context=looked_up(request, "model"))


@require_POST
def languagemodel_delete(request: HttpRequest, pk: int) -> HttpResponse:
    return deletion(request, LanguageModel, pk)


@require_POST
def languagemodel_verify(request: HttpRequest, pk: int) -> HttpResponse:
    model = found(request, LanguageModel, pk)
    return started(request, model, partial(model.verify, request.user))


@require_POST
def languagemodel_restore(request: HttpRequest, pk: int) -> HttpResponse:
    model = found(request, LanguageModel, pk)
    return started(request, model, partial(model.restore, request.user))


@require_POST
def languagemodel_measure(request: HttpRequest, pk: int) -> HttpResponse:
    model = found(request, LanguageModel, pk)
    form = MeasureForm(request.POST)
    if not form.is_valid():
        messages.error(request, " ".join(str(error) for errors in form.errors.values() for error in errors))
        return redirect(model)
    return started(request, model, partial(model.measure, request.user, **form.params()))


@require_POST
def languagemodel_note(request: HttpRequest, pk: int) -> HttpResponse:
    model = found(request, LanguageModel, pk)
    form = NoteForm(request.POST, instance=model)
    if form.is_valid():
        LanguageModel.objects.of_team(model.team).filter(pk=pk).update(notes=form.cleaned_data["notes"])
        messages.success(request, "The notes are saved.")
    else:
        messages.error(request, " ".join(str(error) for error in form.errors.get("notes", [])))
    return redirect(model)


@require_GET
def recommendation(request: HttpRequest) -> HttpResponse:
    user: Any = request.user
    form = RecommendationForm(request.GET or None, team=user.team)
    told = {"recommendation": form.recommendation(), "tokens": form.wanted[0]} if form.ready() else {}
    context = {"form": form, **told}
    return render(request, "language_model/recommendation.html", context)
