from typing import Any

from mistudio.forms.artifact import ArtifactForm
from mistudio.models import Tokenization

SHORTEST = 8  # tokens: below this a context holds nothing to read


class TokenizationForm(ArtifactForm):
    class Meta:
        model = Tokenization
        fields = ("dataset", "language_model", "context_length", "held_out", "seed", "name")
        labels = {
            "language_model": "Language model",
            "held_out": "Held out",
            "context_length": "Context length",
        }
        help_texts = {
            "context_length": "Tokens per sequence. Empty: the model's own, at most 1,024.",
            "held_out": "Part of the documents, 0.01 to 0.5, never trained on: SAEs are measured and read on it.",
            "seed": "Decides which documents are held out.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["context_length"].required = False
        for name in ("held_out", "seed"):
            self.fields[name].required = False

    def clean_held_out(self) -> float:
        value = self.cleaned_data["held_out"]
        if value is None:
            return 0.1
        if not 0.01 <= value <= 0.5:
            self.add_error("held_out", f"{value:g} is outside 0.01 to 0.5. Try 0.1: one document in ten.")
        return value

    def clean_seed(self) -> int:
        return self.cleaned_data["seed"] or 0

    def clean(self) -> dict[str, Any]:
        data = super().clean()
        model, length = data.get("language_model"), data.get("context_length")
        if model is None:
            return data
        longest = model.context_length or 1024
        if length is None and "context_length" not in self.errors:
            data["context_length"] = min(longest, 1024)
        elif length is not None and not SHORTEST <= length <= longest:
            self.add_error(
                "context_length",
                f"{length:,} tokens: {model.name} reads from {SHORTEST} to {longest:,}. Give a number in that range.",
            )
        return data

    def suggested_name(self) -> str:
        return f"{self.cleaned_data['dataset'].name}-{self.cleaned_data['language_model'].name}"
