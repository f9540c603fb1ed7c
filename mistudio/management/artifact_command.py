import argparse
from typing import Any, ClassVar

from django.core.exceptions import ObjectDoesNotExist
from django.forms import BooleanField
from django.forms.models import ModelChoiceField

from jobs.management.job_command import BadInput, JobCommand
from jobs.models import Job
from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.template import FORMS
from mistudio.models import Artifact, Team, Template, User


class ArtifactCommand(JobCommand):
    """A form of the site as a command: the same fields, the same checks, the same job."""

    form_class: ClassVar[type[ArtifactForm]]
    positional: ClassVar[tuple[str, ...]] = ()
    own: ClassVar[tuple[str, ...]] = ()  # fields that a command takes in a way of its own

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        if self.form_class in FORMS.values():
            parser.add_argument("--template", help="settings saved under this name; what else is given counts more")
        for name, field in self.form_class.base_fields.items():
            if name in ("submission", *self.own):
                continue
            about = (str(field.help_text) or str(field.label or "")).replace("%", "%%")
            if name in self.positional:
                parser.add_argument(
                    name, help=f"{about} By name or id." if isinstance(field, ModelChoiceField) else about
                )
                continue
            flag: dict[str, Any] = {"action": "store_true"} if isinstance(field, BooleanField) else {}
            parser.add_argument(f"--{name.removeprefix('n_').replace('_', '-')}", dest=name, help=about, **flag)

    def make_job(self, team: Team, owner: User | None, options: dict[str, Any]) -> tuple[Job, Artifact]:
        form = self.form_class(self.form_data(team, options), team=team, owner=owner)
        artifact = form.launch()
        if artifact is None or artifact.job is None:
            raise BadInput({field: [str(e) for e in errors] for field, errors in form.errors.items()})
        return artifact.job, artifact

    def form_data(self, team: Team, options: dict[str, Any]) -> dict[str, Any]:
        data = self.saved_settings(team, options.get("template"))
        for name, field in self.form_class.base_fields.items():
            value = options.get(name)
            if value is None or name in self.own:
                continue
            if isinstance(field, ModelChoiceField):
                model = field.queryset.model  # type: ignore[union-attr]
                data[name] = self.key_of(team, model, name, value)
            else:
                data[name] = value
        return data

    def saved_settings(self, team: Team, name: str | None) -> dict[str, Any]:
        if not name:
            return {}
        known = Template.objects.of_team(team).filter(noun=self.form_class._meta.model._meta.model_name)
        if row := known.filter(name=name).first():
            return dict(row.values)
        there_are = ", ".join(known.values_list("name", flat=True)[:8]) or "none yet"
        raise BadInput({"template": [f"No template “{name}” for this. There are: {there_are}."]})

    @staticmethod
    def key_of(team: Team, model: Any, name: str, reference: str) -> str:
        try:
            return str(model.of_reference(team, reference).pk)
        except ObjectDoesNotExist:
            known = list(model.objects.of_team(team).values_list("name", flat=True)[:8])
            there_are = f"There are: {', '.join(known)}." if known else "There are none yet."
            raise BadInput({name: [f"No {model.NOUN} “{reference}” by name or id. {there_are}"]}) from None

    def describe(self, artifact: Artifact) -> dict[str, Any]:
        """What `--json` says of the finished artifact."""
        noun = type(artifact)._meta.model_name
        return {"id": artifact.pk, "name": artifact.name, "noun": noun, "folder": str(artifact.folder)}
