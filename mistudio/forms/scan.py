from typing import Any, ClassVar

from mistudio.forms.artifact import ArtifactForm
from mistudio.models import Sae, Scan
from mistudio.models.language_model import Precision

TOKENS = 200_000


class ScanForm(ArtifactForm):
    EMPTY: ClassVar[str] = "holds no held-out tokens. Tokenize again with a larger held-out part."

    class Meta:
        model = Scan
        fields = ("sae", "tokenization", "n_tokens", "dtype", "name")
        labels = {"sae": "SAE", "n_tokens": "Held-out tokens", "dtype": "Precision"}
        help_texts = {
            "tokenization": "Its held-out part is read.",
            "dtype": "Of the language model. Empty: as in the training of the SAE.",
            "n_tokens": f"Frequencies are measured on this many. Empty: {TOKENS:,}, or all there are.",
        }

    def __init__(self, *args: Any, sae: Sae | None = None, **kwargs: Any) -> None:
        super().__init__(*args, without=("sae",) if sae else (), **kwargs)
        self.sae = sae
        if sae:
            tokenizations: Any = self.fields["tokenization"]
            tokenizations.queryset = tokenizations.queryset.filter(language_model=sae.language_model)
            own = sae.training.tokenization_id if sae.training else None
            self.initial["tokenization"] = self.initial.get("tokenization") or own
            self.initial.setdefault("dtype", precision_of(sae))
        for name in ("tokenization", "n_tokens", "dtype"):
            self.fields[name].required = False

    def clean(self) -> dict[str, Any]:
        data = super().clean()
        sae: Sae | None = self.sae or data.get("sae")
        if sae is None:
            return data
        self.instance.sae = sae
        data["dtype"] = data.get("dtype") or precision_of(sae)
        if data.get("tokenization") is None and "tokenization" not in self.errors and sae.training:
            data["tokenization"] = sae.training.tokenization
        tokenization = data.get("tokenization")
        if tokenization is None:
            self.add_error("tokenization", "Choose the tokenized text to read.")
        elif tokenization.language_model_id != sae.language_model_id:
            self.add_error(
                "tokenization",
                f"“{tokenization.name}” holds tokens of {tokenization.language_model.name}, "
                f"but the SAE reads {sae.language_model.name}.",
            )
        else:
            self._settle_tokens(data)
        return data

    def there_are(self, data: dict[str, Any]) -> int:
        """Tokens in the part that is read."""
        return data["tokenization"].n_held_out_tokens or 0

    def _settle_tokens(self, data: dict[str, Any]) -> None:
        there_are, wanted = self.there_are(data), data.get("n_tokens")
        if not there_are:
            self.add_error("tokenization", f"“{data['tokenization'].name}” {self.EMPTY}")
        elif wanted is not None and wanted < 1:
            self.add_error("n_tokens", f"Give 1 to {there_are:,} tokens: so many are there.")
        elif "n_tokens" not in self.errors:
            data["n_tokens"] = min(wanted or TOKENS, there_are)

    def suggested_name(self) -> str:
        sae: Sae = self.sae or self.cleaned_data["sae"]
        return f"{sae.name}-scan"


def precision_of(sae: Sae) -> str:
    """That of the activations it was trained on, so that it reads the same."""
    return (sae.training.computed_in if sae.training else "") or Precision.FLOAT32
