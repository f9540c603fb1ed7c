"""Settings of a form kept as a template, and templates that come as a file from elsewhere."""

import json
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db import transaction
from django.forms.models import ModelChoiceField

from mistudio.forms.activation_cache import ActivationCacheForm
from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.evaluation import EvaluationForm
from mistudio.forms.scan import ScanForm
from mistudio.forms.tokenization import TokenizationForm
from mistudio.forms.training import TrainingForm
from mistudio.models import Team, Template, User
from mistudio.models.artifact import free_name

FORMS: dict[str, type[ArtifactForm]] = {
    "tokenization": TokenizationForm,
    "activationcache": ActivationCacheForm,
    "training": TrainingForm,
    "scan": ScanForm,
    "evaluation": EvaluationForm,
}
LARGEST = 2**18  # bytes of a file with templates
MOST = 200  # templates in a file


def settings_of(form_class: type[ArtifactForm]) -> list[str]:
    """The fields that mean the same for another text or model: no name, and nothing that is an object of the team."""
    fields = form_class.base_fields.items()
    return [name for name, f in fields if name not in ("name", "submission") and not isinstance(f, ModelChoiceField)]


class TemplateForm(forms.ModelForm):
    """Saves what a filled form says, under a name. The form itself may make nothing."""

    prefix = "template"
    use_required_attribute = False  # it stands inside the form whose settings it saves, which is sent without it
    replace = forms.BooleanField(required=False, label="Replace the one of this name")

    class Meta:
        model = Template
        fields = ("name",)
        labels = {"name": "Name of the template"}

    def __init__(self, *args: Any, form: ArtifactForm, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.form = form
        self.noun = str(form._meta.model._meta.model_name)

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or self.cleaned_data
        known = Template.objects.of_team(self.form.team).filter(noun=self.noun, name=data.get("name", ""))
        if known.exists() and not data.get("replace"):
            self.add_error("name", f"A template named “{data['name']}” exists. Choose another name, or replace it.")
        return data

    def keep(self) -> Template | None:
        """None where this or the filled form is wrong."""
        if not (self.form.is_valid() & self.is_valid()):
            return None
        said = {name: self.form.cleaned_data.get(name) for name in settings_of(type(self.form))}
        values = {name: value for name, value in said.items() if value not in (None, "")}
        row, _ = Template.objects.update_or_create(
            team=self.form.team,
            noun=self.noun,
            name=self.cleaned_data["name"],
            defaults={"values": values, "owner": self.form.owner},
        )
        return row


class TemplateImportForm(forms.Form):
    file = forms.FileField(label="File with templates", help_text="JSON, as it was exported here.")

    def clean_file(self) -> list[dict[str, Any]]:
        """Documents with a noun, a name, and values that the noun's form knows."""
        file = self.cleaned_data["file"]
        if file.size > LARGEST:
            raise ValidationError(f"{file.size:,} bytes are too many for templates. At most {LARGEST:,} are read.")
        try:
            said = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise ValidationError("This is not JSON. Export a template to see what one looks like.") from error
        documents = said if isinstance(said, list) else [said]
        if not 1 <= len(documents) <= MOST:
            raise ValidationError(f"The file has {len(documents):,} templates. Give 1 to {MOST}.")
        return [checked(document, number) for number, document in enumerate(documents, 1)]

    def keep(self, team: Team, owner: User | None) -> list[Template]:
        """A name that is taken gets a number: what is there stays as it is."""
        kept = []
        with transaction.atomic():
            for document in self.cleaned_data["file"]:
                taken = Template.objects.of_team(team).filter(noun=document["noun"])
                name = free_name(taken, document["name"])
                kept.append(Template.objects.create(team=team, owner=owner, **{**document, "name": name}))
        return kept


def checked(document: Any, number: int) -> dict[str, Any]:
    """Raises ValidationError."""
    if not isinstance(document, dict) or not isinstance(document.get("values"), dict):
        raise ValidationError(f"Entry {number} is no template: it needs a noun, a name and values.")
    noun, name = document.get("noun"), document.get("name")
    if not isinstance(noun, str) or noun not in FORMS:
        raise ValidationError(f"Entry {number} is for “{str(noun)[:40]}”. Known are {', '.join(FORMS)}.")
    if not isinstance(name, str) or not name.strip() or len(name) > 120 or not name.isprintable():
        raise ValidationError(f"Entry {number} needs a name of 1 to 120 characters.")
    known = settings_of(FORMS[noun])
    if strange := [str(key)[:40] for key in document["values"] if key not in known]:
        raise ValidationError(f"“{name}” has settings that are not known here: {', '.join(strange[:5])}.")
    if any(not isinstance(value, str | int | float | bool | list) for value in document["values"].values()):
        raise ValidationError(f"“{name}” has a setting that is neither text nor number nor yes/no nor a list of them.")
    return {"noun": noun, "name": name.strip(), "values": document["values"]}
