from typing import Any

from jobs.ml.errors import Unusable
from jobs.ml.token_config import TokenConfig
from mistudio.forms.artifact import ArtifactForm
from mistudio.models import Tokenization
from mistudio.models.tokenization import SETTINGS, default

SHORTEST = 8  # tokens: below this a context holds nothing to read


class TokenizationForm(ArtifactForm):
    class Meta:
        model = Tokenization
        fields = (
            "dataset", "language_model", "context_length", "held_out", "layout", "stride", "bos", "separator",
            "chat", "train_on", "junk", "seed", "name",
        )  # fmt: skip
        labels = {
            "language_model": "Language model",
            "held_out": "Held out",
            "context_length": "Context length",
            "stride": "Overlap of windows",
            "bos": "Begin rows with BOS",
            "separator": "Between documents",
            "train_on": "Count",
            "junk": "Junk filter",
        }
        help_texts = {
            "context_length": "Tokens per sequence. Empty: the model's own, at most 1,024.",
            "held_out": "Part of the documents, 0.01 to 0.5, never trained on: SAEs are measured and read on it.",
            "seed": "Decides which documents are held out.",
            "layout": "Padding is masked: never trained on, in no figure.",
            "stride": "Padded only. Empty: what is longer than a row is cut off. A number: it goes on in further rows "
            "that repeat that many tokens, counted once.",
            "bos": "For encoders: their [CLS] and [SEP] around a row.",
            "separator": "Packed only. Attention reads across documents in any case.",
            "chat": "For datasets of conversations.",
            "train_on": "For conversations: what other roles say is read by the model, and in no figure.",
            "junk": "Removed before the text is tokenized, and counted by rule.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in SETTINGS:
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
        self.check(data)
        return data

    def check(self, data: dict[str, Any]) -> None:
        """Refuses at once what the job would refuse."""
        for name in SETTINGS:
            if data.get(name) == "":
                data[name] = default(name)
        if self.errors:
            return
        try:
            TokenConfig(**{name: data[name] for name in SETTINGS})
        except Unusable as refused:
            self.add_error(refused.field, f"{refused} {refused.hint}".strip())
            return
        if data["train_on"] != "all" and not data["dataset"].conversations:
            self.add_error(
                "train_on", "This dataset holds plain text: nothing in it tells who says what. Count every token."
            )

    def suggested_name(self) -> str:
        return f"{self.cleaned_data['dataset'].name}-{self.cleaned_data['language_model'].name}"
