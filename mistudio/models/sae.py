from pathlib import Path
from typing import ClassVar

from django.db import models

from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.architectures.options import OPTIONS
from mistudio.models.artifact import Artifact
from mistudio.models.language_model import LanguageModel
from mistudio.models.training import Training


class Sae(Artifact):
    """A trained, folded sparse autoencoder, with what was measured of it on held-out tokens."""

    NOUN, ROOM, KIND = "SAE", "saes", "train_sae"
    BUILT_ON = ("language_model",)

    training = models.ForeignKey(Training, on_delete=models.PROTECT, null=True, blank=True, related_name="saes")
    number = models.PositiveIntegerField(default=0, editable=False)  # of the training's SAEs, from 0
    language_model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="saes")
    reads = models.JSONField(default=list)  # its sites; several of a crosscoder
    writes = models.JSONField(default=list, blank=True)  # of a transcoder: the site that it rebuilds
    architecture = models.CharField(max_length=20)
    d_in = models.PositiveIntegerField()
    width = models.PositiveIntegerField()
    options = models.JSONField(default=dict, blank=True)  # of its architecture
    # On `evaluated_tokens` held-out tokens; None is "not measured".
    fvu = models.FloatField(null=True, editable=False)
    l0 = models.FloatField(null=True, editable=False)
    ce_recovered = models.FloatField(null=True, editable=False)
    evaluated_tokens = models.BigIntegerField(null=True, editable=False)
    metrics = models.JSONField(default=dict, editable=False)
    # The one that measured the features as they are now; none before the first, and while one is being taken over.
    scan = models.ForeignKey("Scan", on_delete=models.SET_NULL, null=True, editable=False, related_name="+")

    class Meta(Artifact.Meta):
        verbose_name = "SAE"
        constraints: ClassVar[list[models.BaseConstraint]] = [
            *Artifact.Meta.constraints,
            models.UniqueConstraint(fields=["training", "number"], name="sae_number_once_per_training"),
        ]

    @property
    def site(self) -> str:
        """What it reads and, where that is something else, what it writes."""
        return " → ".join(" + ".join(side) for side in (self.reads, self.writes) if side)

    @property
    def label(self) -> str:
        known = ARCHITECTURES.get(self.architecture)
        return known.label if known else self.architecture

    @property
    def options_said(self) -> list[tuple[str, int | float | str]]:
        """Labels of the options of its architecture, with their values."""
        return [(OPTIONS[name].label, value) for name, value in self.options.items() if name in OPTIONS]

    @property
    def options_briefly(self) -> str:
        """The first, which decides how sparse it is, and those that are not the architecture's presets."""
        presets = ARCHITECTURES[self.architecture].presets if self.architecture in ARCHITECTURES else {}
        own = [name for n, name in enumerate(self.options) if n == 0 or presets.get(name) != self.options[name]]
        return ", ".join(f"{OPTIONS[name].label} {self.options[name]}" for name in own if name in OPTIONS)

    @property
    def explained_variance(self) -> float | None:
        return None if self.fvu is None else 1 - self.fvu

    @property
    def folder(self) -> Path:
        """A training writes its SAE into its own folder, before there is a row."""
        return self.training.sae_folder(self.number) if self.training else super().folder

    def command(self) -> str:
        return self.training.command() if self.training else ""
