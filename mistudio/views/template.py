from typing import Any

from django.contrib import messages
from django.db.models import QuerySet
from django.forms import Field
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import NoReverseMatch, reverse
from django.views.decorators.http import require_GET, require_POST

from mistudio.formats import fact, sci
from mistudio.forms.template import FORMS, TemplateImportForm
from mistudio.models import Template


def owned(request: HttpRequest) -> QuerySet[Template]:
    user: Any = request.user
    return Template.objects.of_team(user.team)


@require_GET
def templates(request: HttpRequest) -> HttpResponse:
    return page(request, TemplateImportForm())


def page(request: HttpRequest, form: TemplateImportForm) -> HttpResponse:
    noun = request.GET.get("noun", "")
    rows = owned(request).select_related("owner")
    total = rows.count()
    chosen = rows.filter(noun=noun) if noun in FORMS else rows
    shown = [
        {"template": row, "noun": spoken(row.noun), "start": start(row), "settings": settings(row)} for row in chosen
    ]
    nouns = [(key, spoken(key)) for key in FORMS]
    context = {"rows": shown, "total": total, "nouns": nouns, "noun": noun, "form": form}
    return render(request, "template/list.html", context, status=422 if form.is_bound else 200)


def spoken(noun: str) -> str:
    return FORMS[noun]._meta.model.NOUN if noun in FORMS else noun


def settings(row: Template) -> list[tuple[str, str]]:
    """As the form calls and shows them."""
    fields = FORMS[row.noun].base_fields if row.noun in FORMS else {}
    labels = {name: field.label or name.capitalize().replace("_", " ") for name, field in fields.items()}
    return [(str(labels.get(name, name)), shown(fields.get(name), value)) for name, value in row.values.items()]


def shown(field: Field | None, value: Any) -> str:
    choices: Any = getattr(field, "choices", ())
    labels = {str(key): str(label) for key, label in choices}
    if isinstance(value, list):
        return ", ".join(shown(field, item) for item in value)
    return labels.get(str(value)) or (sci(value) if isinstance(value, float) else fact(value))


def start(row: Template) -> str:
    """Where the form is that this fills. A scan is started from the page of its SAE."""
    try:
        return f"{reverse(f'{row.noun}_new')}?template={row.pk}"
    except NoReverseMatch:
        return ""


@require_POST
def template_import(request: HttpRequest) -> HttpResponse:
    user: Any = request.user
    if user.team is None:
        return redirect("home")  # which says so
    form = TemplateImportForm(request.POST, request.FILES)
    if not form.is_valid():
        return page(request, form)
    names = ", ".join(f"“{row.name}”" for row in form.keep(user.team, user))
    messages.success(request, f"Imported {names}.")
    return redirect("templates")


@require_GET
def template_export(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(owned(request), pk=pk)
    answer = JsonResponse(row.document(), json_dumps_params={"indent": 1})
    answer["Content-Disposition"] = f'attachment; filename="template-{row.noun}-{row.pk}.json"'
    return answer


@require_POST
def template_favourite(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(owned(request), pk=pk)
    owned(request).filter(pk=pk).update(favourite=not row.favourite)
    return redirect("templates")


@require_POST
def template_delete(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(owned(request), pk=pk)
    row.delete()
    messages.success(request, f"Deleted template “{row.name}”. What was started from it stays.")
    return redirect("templates")
