"""What the pages of all artifacts share: find within the team, list, make, delete."""

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlencode

from django.contrib import messages
from django.core.paginator import Paginator
from django.db import transaction
from django.db.models import QuerySet
from django.forms import BooleanField, model_to_dict
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse

from jobs.errors import InvalidInput
from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.template import FORMS, TemplateForm, settings_of
from mistudio.models import Artifact, LanguageModel, Template
from mistudio.models.artifact import InUse

PAGE = 50
UNSAID = ("csrfmiddlewaretoken", "submission")  # of a form that is sent, and of no address
Row = TypeVar("Row", bound=Artifact)


def owned(request: HttpRequest, model: type[Row]) -> QuerySet[Row]:
    user: Any = request.user
    rows: Any = model.objects.of_team(user.team)
    return rows


def found(request: HttpRequest, model: type[Row], pk: int, *related: str) -> Row:
    """The row with its job, or 404: an object of another team does not exist."""
    return get_object_or_404(owned(request, model).select_related("job", "owner", *related), pk=pk)


def listing(
    request: HttpRequest, rows: QuerySet, template: str, *, narrowed: dict[str, Any] | None = None, **context: Any
) -> HttpResponse:
    """narrowed: field → the value that is asked for beside name and model; what is empty is not asked for."""
    wanted = {name: value for name, value in (narrowed or {}).items() if value}
    q = request.GET.get("q", "").replace("\0", "").strip()
    total = rows.count()
    of = built_on(request, rows.model)
    chosen = rows.filter(name__icontains=q) if q else rows
    chosen = chosen.filter(language_model=of) if of else chosen
    chosen = chosen.filter(**wanted)
    page = Paginator(chosen.select_related("job", "owner"), PAGE).get_page(request.GET.get("page"))
    return render(
        request, template, {"page_obj": page, "q": q, "of": of, "narrowed": wanted, "total": total, **context}
    )


def built_on(request: HttpRequest, model: type[Artifact]) -> LanguageModel | None:
    """The language model whose tokenizations, trainings or SAEs alone are asked for."""
    return asked_for(request, LanguageModel, "language_model") if "language_model" in model.BUILT_ON else None


def asked_for(request: HttpRequest, model: type[Row], name: str) -> Row | None:
    """The object that the address names."""
    key = request.GET.get(name, "")
    return owned(request, model).filter(pk=int(key)).first() if key.isdecimal() and len(key) < 19 else None


def creation(
    request: HttpRequest,
    form_class: type[ArtifactForm],
    template: str,
    *,
    context: dict[str, Any] | None = None,
    look: Callable[[ArtifactForm], dict[str, Any]] | None = None,
    **kwargs: Any,
) -> HttpResponse:
    """Offer the form, keep what was typed when it is wrong, launch once however often it is sent.

    look: what “Preview” shows of a filled form, which starts nothing."""
    data = request.POST if request.method == "POST" else None
    user: Any = request.user
    if user.team is None:
        return redirect("home")  # which says so
    if "fill" in request.POST:  # from the chosen template: what it does not speak of stays as it was typed
        return redirect(address(request.path, request.POST, *(set(request.POST) - stays(form_class))))
    noun = form_class._meta.model._meta.model_name
    templates = Template.objects.of_team(user.team).filter(noun=noun)
    chosen = chosen_template(templates, request.GET.get("template", ""))
    initial = {**(chosen.values if chosen else {}), **said(request.GET)}
    files = request.FILES if data is not None else None
    form = form_class(data, files, team=user.team, owner=user, initial=initial, **kwargs)
    keeping = request.POST.get("keep") == "template"  # “Save template” was pressed, not what starts the work
    template_form = TemplateForm(data if keeping else None, form=form) if noun in FORMS else None
    context = {"templates": templates, "chosen_template": chosen, "template_form": template_form, **(context or {})}
    if look and "preview" in request.POST:
        return render(request, template, {"form": form, **context, **look(form)})
    if keeping and template_form:
        if row := template_form.keep():
            messages.success(request, f"Saved template “{row.name}”. Nothing was started.")
    elif data is not None:
        if before := form.already_sent():
            return redirect(before)
        if made := form.launch() or form.already_sent():  # a second click may come before the first is answered
            return redirect(made)
    status = 422 if form.errors or (template_form and template_form.errors) else 200
    return render(request, template, {"form": form, **context}, status=status)


def chosen_template(templates: QuerySet[Template], key: str) -> Template | None:
    return templates.filter(pk=int(key)).first() if key.isdecimal() else None


def said(query: QueryDict) -> dict[str, str]:
    """What an address or a form says of each field; several values of one are a list with commas."""
    return {name: ",".join(filter(None, values)) for name, values in query.lists()}


def address(path: str, data: QueryDict, *without: str, **more: Any) -> str:
    """Of the form at `path`, filled in with what was typed."""
    typed = {name: text for name, text in said(data).items() if text and name not in (*UNSAID, *without)}
    return f"{path}?{urlencode({**typed, **more})}"


def stays(form_class: type[ArtifactForm]) -> set[str]:
    """What is left as it is when a template fills the form, and the choice of the template."""
    return {"template", *form_class.base_fields} - set(settings_of(form_class))


def deletion(request: HttpRequest, model: type[Artifact], pk: int) -> HttpResponse:
    artifact = found(request, model, pk)
    name = artifact.name
    try:
        artifact.delete_with_files()
    except InUse as refused:
        messages.error(request, str(refused))
        return redirect(artifact)
    messages.success(request, f"Deleted {model.NOUN} “{name}” and its files.")
    return redirect(reverse(f"{model._meta.model_name}s"))


def started(request: HttpRequest, artifact: Artifact, work: Callable[[], Any]) -> HttpResponse:
    """Start work on what is there, and show its page, where it is followed, or is said why it was refused."""
    try:
        with transaction.atomic():
            work()
    except InvalidInput as refused:
        messages.error(request, f"{refused.message} {refused.hint}".strip())
    return redirect(artifact)


def again(artifact: Artifact, form_class: type[ArtifactForm], *within: int, **instead: Any) -> str:
    """Address of the form, filled in with what this was made from, or with what to take instead.

    within: the key of the object to which the form belongs, where its address has one."""
    chosen = {
        **model_to_dict(artifact, [name for name in form_class.base_fields if name != "name" and name not in instead]),
        **instead,
    }
    ticks = [name for name, field in form_class.base_fields.items() if isinstance(field, BooleanField)]
    filled = {name: value for name, value in chosen.items() if value not in (None, "") and (value or name not in ticks)}
    words = {name: ",".join(value) if isinstance(value, list) else value for name, value in filled.items()}
    return f"{reverse(f'{artifact._meta.model_name}_new', args=within)}?{urlencode(words)}"


def topics(artifact: Artifact) -> list[str]:
    """What the page of this artifact listens to."""
    return [f"jobs.{artifact.job_id}"] if artifact.job_id else []
