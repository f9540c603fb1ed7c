from dataclasses import fields
from typing import Any

from django.db import models

from jobs.ml.token_config import BOS, CHATS, JUNK, LAYOUTS, ROLES, SEPARATORS, TokenConfig
from mistudio.models.artifact import Artifact
from mistudio.models.dataset import Dataset
from mistudio.models.language_model import LanguageModel

SETTINGS = tuple(field.name for field in fields(TokenConfig))


class Tokenization(Artifact):
    """A dataset as the token ids of one language model, in rows of one length, with a held-out part."""

    NOUN, ROOM, KIND = "tokenization", "tokenizations", "tokenize"
    BUILT_ON = ("language_model",)

    dataset = models.ForeignKey(Dataset, on_delete=models.PROTECT, related_name="tokenizations")
    language_model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="tokenizations")
    context_length = models.PositiveIntegerField()
    held_out = models.FloatField(default=0.1)
    seed = models.PositiveIntegerField(default=0)
    layout = models.CharField(max_length=12, choices=LAYOUTS, default="packed")
    stride = models.PositiveIntegerField("overlap", null=True, blank=True)
    bos = models.CharField("beginning of text", max_length=12, choices=BOS, default="present")
    separator = models.CharField("between documents", max_length=12, choices=SEPARATORS, default="present")
    chat = models.CharField("conversations", max_length=12, choices=CHATS, default="auto")
    train_on = models.CharField(max_length=12, choices=ROLES, default="all")
    junk = models.CharField("junk filter", max_length=12, choices=JUNK, default="off")
    n_tokens = models.BigIntegerField(null=True, editable=False)  # in the part to train on, without padding
    n_held_out_tokens = models.BigIntegerField(null=True, editable=False)
    n_sequences = models.BigIntegerField(null=True, editable=False)
    statistics = models.JSONField(default=dict, editable=False)

    def config(self) -> dict[str, Any]:
        """As TokenConfig has it."""
        return {name: getattr(self, name) for name in SETTINGS}

    def holds_out_as(self, other: "Tokenization") -> bool:
        """Of the same dataset: the same documents."""
        return (self.seed, self.held_out) == (other.seed, other.held_out)

    def params(self) -> dict[str, Any]:
        return {
            "dataset_folder": str(self.dataset.folder),
            "model_folder": str(self.language_model.folder),
            "folder": str(self.folder),
            **self.config(),
        }

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        words = [self.dataset.name, self.language_model.name]
        always = ("context_length", "held_out", "seed")
        chosen = {name: value for name, value in self.config().items() if name in always or value != default(name)}
        return words, {name.replace("_", "-"): value for name, value in chosen.items()}


def default(name: str) -> Any:
    field: Any = Tokenization._meta.get_field(name)
    return field.get_default()
