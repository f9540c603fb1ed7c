from typing import Any

from django.db import models

from mistudio.models.artifact import Artifact
from mistudio.models.dataset import Dataset
from mistudio.models.language_model import RUN_PRECISIONS, Precision
from mistudio.models.sae import Sae
from mistudio.models.tokenization import Tokenization


class Split(models.TextChoices):
    HELD_OUT = "held_out", "Held out"
    TRAIN = "train", "Trained on"


class Evaluation(Artifact):
    """What was measured of an SAE on tokens, and on labelled texts: figures with their intervals."""

    NOUN, ROOM, KIND = "evaluation", "evaluations", "evaluate_sae"
    BUILT_ON = ("sae",)

    sae = models.ForeignKey(Sae, on_delete=models.PROTECT, related_name="evaluations")
    tokenization = models.ForeignKey(Tokenization, on_delete=models.PROTECT, related_name="evaluations")
    split = models.CharField(max_length=12, choices=Split.choices, default=Split.HELD_OUT)
    n_tokens = models.BigIntegerField(help_text="Tokens to read.")
    dtype = models.CharField(
        "precision", max_length=20, choices=RUN_PRECISIONS, default=Precision.FLOAT32
    )  # of the language model while its activations are read
    labelled = models.ForeignKey(
        Dataset, on_delete=models.PROTECT, null=True, blank=True, related_name="evaluations"
    )  # whose source has labels beside the texts
    text_column = models.CharField(max_length=120, blank=True)
    label_column = models.CharField(max_length=120, blank=True)
    second_label_column = models.CharField(max_length=120, blank=True)
    absorption = models.BooleanField(default=False)
    evaluated_tokens = models.BigIntegerField(null=True, editable=False)
    result = models.JSONField(default=dict, editable=False)

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        """{value, low, high, n, formula} by name."""
        return self.result.get("figures", {})

    def params(self) -> dict[str, Any]:
        return {
            **self.sae.placed(),
            "tokens_folder": str(self.tokenization.folder),
            "folder": str(self.folder),
            "split": self.split,
            "tokens": self.n_tokens,
            "dtype": self.dtype,
            "absorption": self.absorption,
            **(self.labels() if self.labelled else {}),
        }

    def labels(self) -> dict[str, Any]:
        """Where the labelled texts come from."""
        source: Any = self.labelled
        return {
            "labelled": source.source_path,
            "labelled_config": source.config,
            "labelled_split": source.split,
            "labelled_revision": source.revision,
            "labelled_encoding": source.encoding,
            "text_column": self.text_column,
            "label_column": self.label_column,
            "second_label_column": self.second_label_column,
        }

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        return [self.sae.name], {
            "tokenization": self.tokenization.name,
            "split": self.split if self.split != Split.HELD_OUT else "",
            "tokens": self.n_tokens,
            "dtype": self.dtype,
            "labelled": self.labelled.name if self.labelled else "",
            "text-column": self.text_column,
            "label-column": self.label_column,
            "second-label-column": self.second_label_column,
            "absorption": self.absorption,
        }
