from pathlib import Path
from typing import Any

from django import forms

from jobs import devices
from mistudio import measurements, memory, recommend
from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.sources import clean_source
from mistudio.models import LanguageModel, Team
from mistudio.models.language_model import Precision

HOUR = 3600.0


class LanguageModelForm(ArtifactForm):
    class Meta:
        model = LanguageModel
        fields = ("source", "revision", "name")
        labels = {"source": "Hub id or folder"}
        help_texts = {
            "source": "Such as openai-community/gpt2, or a folder on this machine with config.json and safetensors.",
            "revision": "Branch, tag or commit of a hub model. Empty: the default branch.",
        }

    twin: LanguageModel | None = None  # what is here already

    def clean_source(self) -> str:
        return clean_source(self.cleaned_data["source"], "model")

    def clean(self) -> dict[str, Any]:
        data = super().clean()
        if not self.errors:
            self.twin = LanguageModel.twin(self.team, data["source"], data["revision"])
        if self.twin:
            said = (
                f"This model is here already as “{self.twin.name}”. Use that one: a precision is chosen for every run."
            )
            self.add_error("source", said)
        return data

    def suggested_name(self) -> str:
        return Path(self.cleaned_data["source"]).name


class NoteForm(forms.ModelForm):
    class Meta:
        model = LanguageModel
        fields = ("notes",)
        widgets = {"notes": forms.Textarea(attrs={"rows": 3, "maxlength": 10_000})}

    notes = forms.CharField(required=False, max_length=10_000, widget=Meta.widgets["notes"])


class MeasureForm(forms.Form):
    dtype = forms.ChoiceField(choices=Precision.choices, initial=Precision.FLOAT32, required=False, label="Precision")
    context_length = forms.IntegerField(
        min_value=2,
        max_value=2**20,
        required=False,
        label="Context",
        help_text="Tokens of a sequence. Empty: the model's, 512 at most.",
        widget=forms.NumberInput(attrs={"placeholder": "512"}),
    )

    def params(self) -> dict[str, Any]:
        dtype = self.cleaned_data["dtype"] or Precision.FLOAT32.value
        return {"dtype": dtype, "context_length": self.cleaned_data["context_length"]}


class RecommendationForm(forms.Form):
    """What for, how much and how soon; all of it in the address."""

    purpose = forms.ChoiceField(
        choices=[(name, words[0].upper() + words[1:]) for name, (words, _) in recommend.PURPOSES.items()]
    )
    tokens = forms.IntegerField(
        min_value=1, max_value=10**13, required=False, initial=1_000_000, help_text="To read. Empty: 1,000,000."
    )
    hours = forms.FloatField(
        min_value=0.001, max_value=10_000, required=False, initial=1, help_text="It may take. Empty: 1."
    )
    device = forms.ChoiceField(required=False, help_text="On which it was measured.")

    def __init__(self, *args: Any, team: Team, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.team = team
        self.seen = measurements.observations(team)
        names = sorted({one.device for found in self.seen.values() for one in found if one.device})
        choice: Any = self.fields["device"]
        choice.choices = [("", "Any"), *((name, name) for name in names)]

    def ready(self) -> bool:
        return self.is_bound and self.is_valid()

    @property
    def wanted(self) -> tuple[int, float]:
        """Tokens, and the seconds that reading them may take."""
        return self.cleaned_data["tokens"] or 1_000_000, HOUR * (self.cleaned_data["hours"] or 1)

    def recommendation(self) -> recommend.Recommendation:
        device = self.cleaned_data["device"]
        given = [device] if device else []
        return recommend.recommend(self.cleaned_data["purpose"], self.candidates(), given, *self.wanted)

    def candidates(self) -> list[recommend.Candidate]:
        memories = devices.memories()
        rows = LanguageModel.objects.of_team(self.team).select_related("job").order_by("pk")
        return [self.candidate(row, memories) for row in rows]

    def candidate(self, row: LanguageModel, memories: list[devices.Memory]) -> recommend.Candidate:
        seen = self.seen.get(row.pk, [])
        needs = memory.needs(row, seen, memories)
        return recommend.Candidate(
            row.pk, row.name, row.n_parameters or 0, bool(row.causal), row.refusal(), needs, seen
        )
