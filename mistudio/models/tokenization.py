from typing import Any

from django.db import models

from mistudio.models.artifact import Artifact
from mistudio.models.dataset import Dataset
from mistudio.models.language_model import LanguageModel


class Tokenization(Artifact):
    """A dataset as the token ids of one language model, packed to a context length, with a held-out part."""

    NOUN, ROOM, KIND = "tokenization", "tokenizations", "tokenize"
    BUILT_ON = ("language_model",)

    dataset = models.ForeignKey(Dataset, on_delete=models.PROTECT, related_name="tokenizations")
    language_model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="tokenizations")
    context_length = models.PositiveIntegerField()
    held_out = models.FloatField(default=0.1)
    seed = models.PositiveIntegerField(default=0)
    n_tokens = models.BigIntegerField(null=True, editable=False)  # in the part to train on
    n_held_out_tokens = models.BigIntegerField(null=True, editable=False)
    n_sequences = models.BigIntegerField(null=True, editable=False)
    statistics = models.JSONField(default=dict, editable=False)

    def params(self) -> dict[str, Any]:
        return {
            "dataset_folder": str(self.dataset.folder),
            "model_folder": str(self.language_model.folder),
            "folder": str(self.folder),
            "context_length": self.context_length,
            "held_out": self.held_out,
            "seed": self.seed,
        }

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        words = [self.dataset.name, self.language_model.name]
        return words, {"context-length": self.context_length, "held-out": self.held_out, "seed": self.seed}
