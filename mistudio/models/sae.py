from pathlib import Path
from typing import Any

from django.db import models

from mistudio.models.artifact import Artifact
from mistudio.models.language_model import LanguageModel
from mistudio.models.training import Training


class Sae(Artifact):
    """A trained, folded sparse autoencoder, with what was measured of it on held-out tokens."""

    NOUN, ROOM, KIND = "SAE", "saes", "train_sae"

    training = models.OneToOneField(Training, on_delete=models.PROTECT, null=True, blank=True, related_name="sae")
    language_model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="saes")
    site = models.CharField(max_length=120)
    architecture = models.CharField(max_length=20)
    d_in = models.PositiveIntegerField()
    width = models.PositiveIntegerField()
    k = models.PositiveIntegerField(null=True, blank=True)
    # On `evaluated_tokens` held-out tokens; None is "not measured".
    fvu = models.FloatField(null=True, editable=False)
    l0 = models.FloatField(null=True, editable=False)
    ce_recovered = models.FloatField(null=True, editable=False)
    evaluated_tokens = models.BigIntegerField(null=True, editable=False)
    metrics = models.JSONField(default=dict, editable=False)

    class Meta(Artifact.Meta):
        verbose_name = "SAE"

    @property
    def explained_variance(self) -> float | None:
        return None if self.fvu is None else 1 - self.fvu

    @property
    def folder(self) -> Path:
        """A training writes its SAE into its own folder, before there is a row."""
        return self.training.sae_folder if self.training else super().folder

    @property
    def scan(self) -> Any:
        """The newest finished scan: the features of this SAE were measured by it."""
        return self.scans.filter(ready_at__isnull=False).order_by("-pk").first()

    def command(self) -> str:
        return self.training.command() if self.training else ""
