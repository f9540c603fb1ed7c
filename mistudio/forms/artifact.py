import uuid
from collections.abc import Collection
from typing import Any

from django import forms
from django.db import IntegrityError, transaction
from django.forms.models import ModelChoiceField

from jobs.errors import InvalidInput
from mistudio.models import Artifact, LanguageModel, Team, User
from mistudio.models.artifact import free_name


class ArtifactForm(forms.ModelForm):
    """What a page or a command asks for before a job starts; both go through here, so both refuse the same input."""

    submission = forms.UUIDField(required=False, widget=forms.HiddenInput)

    def __init__(
        self, *args: Any, team: Team, owner: User | None, without: Collection[str] = (), **kwargs: Any
    ) -> None:
        """without: fields that are not asked for, because the page knows what they would say."""
        super().__init__(*args, **kwargs)
        for name in without:
            del self.fields[name]
        self.team, self.owner = team, owner
        self.initial.setdefault("submission", uuid.uuid4())
        self.fields["name"].required = False
        self.fields["name"].help_text = "Empty: a name is made from the choices."
        references = {name: field for name, field in self.fields.items() if isinstance(field, ModelChoiceField)}
        unusable = LanguageModel.unusable(team) if references else []  # looks into the folder of each
        for name, field in references.items():
            rows: Any = field.queryset
            field.queryset = rows.model.offered(team, unusable)
            self.explain_refusal(name, field)
            if not field.required:
                continue  # what may stay open is not chosen for the reader
            field.empty_label = None
            first = field.queryset.first()
            if first:
                self.initial.setdefault(name, first.pk)

    def explain_refusal(self, name: str, field: ModelChoiceField) -> None:
        """What was chosen may be there and yet not be offered: the error says why."""
        key = str(self.data.get(name) or "")
        if key.isdecimal():
            rows: Any = field.queryset
            row = rows.model.objects.of_team(self.team).filter(pk=int(key)).first()
            if row and row.ready and (why := row.refusal()):
                field.error_messages["invalid_choice"] = why

    def already_sent(self) -> Artifact | None:
        """The object that this very form made before: a second click must not make a second one."""
        try:
            key = uuid.UUID(str(self.data.get("submission")))
        except ValueError:
            return None
        return self._meta.model.objects.of_team(self.team).filter(submission=key).first()

    def suggested_name(self) -> str:
        raise NotImplementedError

    def clean_submission(self) -> uuid.UUID:
        return self.cleaned_data.get("submission") or uuid.uuid4()

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or self.cleaned_data
        if self.errors:
            return data
        rows = self._meta.model.objects.of_team(self.team)
        if not data.get("name"):
            data["name"] = free_name(rows, self.suggested_name())
        elif rows.filter(name=data["name"]).exists():
            noun = self._meta.model.NOUN
            self.add_error("name", f"A {noun} named “{data['name']}” exists. Choose another name, or leave it empty.")
        return data

    def launch(self) -> Artifact | None:
        """Save the row and hand its job to a worker, both or neither. None when the form or the kind refuses."""
        if not self.is_valid():
            return None
        self.instance.team, self.instance.owner = self.team, self.owner
        self.instance.submission = self.cleaned_data["submission"]
        try:
            with transaction.atomic():
                artifact: Artifact = self.save()
                artifact.start()
        except IntegrityError:  # the same moment brought another object of this name
            self.instance.pk = None
            self.add_error("name", "This name was just taken. Choose another one, or leave it empty.")
            return None
        except InvalidInput as refused:
            self.instance.pk = None  # the row was rolled back
            known = refused.field if refused.field in self.fields else None
            self.add_error(known, f"{refused.message} {refused.hint}".strip())
            return None
        artifact.refresh_from_db()
        return artifact
