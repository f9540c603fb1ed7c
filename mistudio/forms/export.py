from typing import Any

from jobs.ml.formats import FORMATS
from jobs.ml.hub_names import is_hub_id
from mistudio.forms.artifact import ArtifactForm
from mistudio.models import Export, Sae
from mistudio.models.export import CHOICES


class ExportForm(ArtifactForm):
    class Meta:
        model = Export
        fields: tuple[str, ...] = ("sae", "format", "repository", "public", "licence", "name")
        labels = {"sae": "SAE", "repository": "Push to", "public": "Public repository"}
        help_texts = {
            "format": f"One of {', '.join(name for name, _ in CHOICES)}.",
            "repository": "An id of the hub, owner/name, to which your token may write. Empty: it stays here.",
            "public": "Where the repository is made by this. Else only those see it whom its owner lets.",
            "licence": "For the card, such as mit or cc-by-4.0. Empty: the SAE's own, where it has one.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["format"].required = False
        names = ", ".join(name for name, _ in CHOICES)
        self.fields["format"].error_messages["invalid_choice"] = f"“%(value)s” is no format. Give one of {names}."

    def chosen(self) -> Sae | None:
        return self.cleaned_data.get("sae")

    def clean_repository(self) -> str:
        text: str = self.cleaned_data["repository"].strip()
        if text and not (is_hub_id(text) and "/" in text):
            self.add_error("repository", f"“{text}” is no id of the hub. An id is owner/name.")
        return text

    def clean(self) -> dict[str, Any]:
        sae = self.chosen()
        if sae is None:
            return super().clean()
        self.instance.sae = sae
        self.cleaned_data["format"] = self.cleaned_data.get("format") or "saelens"
        if "format" not in self.errors and (why := sae.export_refusal(self.cleaned_data["format"])):
            can = ", ".join(name for name in FORMATS if not sae.export_refusal(name))
            self.add_error("format", f"{why} It can be exported as {can}." if can else why)
        return super().clean()

    def suggested_name(self) -> str:
        return f"{self.instance.sae.name}-{self.cleaned_data['format']}"


class SaeExportForm(ExportForm):
    """The page's form, of an SAE that is chosen already."""

    class Meta(ExportForm.Meta):
        fields = ExportForm.Meta.fields[1:]

    def __init__(self, *args: Any, sae: Sae, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sae = sae
        found = [(name, label, sae.export_refusal(name)) for name, label in CHOICES]
        self.refused = [(label, why) for _, label, why in found if why]
        choice: Any = self.fields["format"]
        choice.choices = [(name, label) for name, label, why in found if not why]
        choice.help_text = ""

    def chosen(self) -> Sae:
        return self.sae
