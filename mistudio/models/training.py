from pathlib import Path
from typing import Any, ClassVar

from django.db import models

from jobs.models import Job
from mistudio.models.activation_cache import ActivationCache
from mistudio.models.artifact import Artifact
from mistudio.models.language_model import AUTO, RUN_PRECISIONS, LanguageModel, Precision
from mistudio.models.tokenization import Tokenization

LOGGED = 2000  # steps, at most: a page reads them all


class Training(Artifact):
    """A run: a sparse autoencoder fitted to the activations of one site, with its metrics and checkpoints."""

    NOUN, ROOM, KIND = "training", "trainings", "train_sae"
    BUILT_ON = ("language_model",)

    class Architecture(models.TextChoices):
        TOPK = "topk", "TopK"
        STANDARD = "standard", "ReLU + L1"

    language_model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="trainings")
    tokenization = models.ForeignKey(Tokenization, on_delete=models.PROTECT, related_name="trainings")
    # none: activations are computed while it trains
    caches = models.ManyToManyField(ActivationCache, through="CacheShare", related_name="trainings")
    site = models.CharField(max_length=120)
    architecture = models.CharField(max_length=20, choices=Architecture.choices, default=Architecture.TOPK)
    width = models.PositiveIntegerField()
    k = models.PositiveIntegerField(null=True, blank=True)
    l1_coefficient = models.FloatField(null=True, blank=True)
    n_tokens = models.BigIntegerField(help_text="Tokens to train on; the data is read again when it is shorter.")
    batch_tokens = models.PositiveIntegerField(default=4096)
    lr = models.FloatField(null=True, blank=True)
    seed = models.PositiveIntegerField(default=0)
    dtype = models.CharField(
        "precision", max_length=20, choices=RUN_PRECISIONS, default=Precision.FLOAT32
    )  # of the language model while its activations are read
    result = models.JSONField(default=dict, editable=False)

    @property
    def sae_folder(self) -> Path:
        return self.folder / "sae"

    @property
    def reads(self) -> "list[CacheShare]":
        """The caches, in the order in which the engine is given them."""
        return list(self.shares.select_related("cache"))

    def params(self) -> dict[str, Any]:
        reads = self.reads
        return {
            "model_folder": str(self.language_model.folder),
            "tokens_folder": str(self.tokenization.folder),
            "folder": str(self.folder),
            "sae_folder": str(self.sae_folder),
            "site": self.site,
            "architecture": self.architecture,
            "width": self.width,
            "k": self.k,
            "l1_coefficient": self.l1_coefficient,
            "tokens": self.n_tokens,
            "batch_tokens": self.batch_tokens,
            "lr": self.lr,
            "seed": self.seed,
            "dtype": self.dtype,
            "log_every": max(10, self.steps // LOGGED),
            "model_name": self.language_model.source,
            "dataset_name": self.tokenization.dataset.origin,
            "caches": [str(share.cache.folder) for share in reads],
            "cache_weights": [share.weight for share in reads if share.weight is not None],
        }

    def start(self) -> Job:
        for cache in self.caches.all():
            cache.touch()
        return super().start()

    @property
    def result_folder(self) -> Path:
        return self.sae_folder

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        return [self.tokenization.name], {
            "site": self.site,
            "cache": [share.word(share.cache.name) for share in self.reads],
            "architecture": self.architecture,
            "width": self.width,
            "k": self.k,
            "l1-coefficient": self.l1_coefficient,
            "lr": self.lr,
            "tokens": self.n_tokens,
            "batch-tokens": self.batch_tokens,
            "seed": self.seed,
            "dtype": self.dtype,
        }

    @property
    def computed_in(self) -> str:
        """The precision of the language model in this run, once it is settled."""
        return self.result.get("dtype") or (self.dtype if self.dtype != AUTO else "")

    @property
    def steps(self) -> int:
        return -(-self.n_tokens // self.batch_tokens)


class CacheShare(models.Model):
    """An activation cache as a part of what a training reads."""

    training = models.ForeignKey(Training, on_delete=models.CASCADE, related_name="shares")
    cache = models.ForeignKey(ActivationCache, on_delete=models.PROTECT, related_name="shares")
    weight = models.FloatField(null=True)  # its share of each batch; none of them has one: by number of tokens

    class Meta:
        ordering: ClassVar[list[str]] = ["pk"]
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["training", "cache"], name="cache_once_per_training")
        ]

    def __str__(self) -> str:
        return f"{self.cache} in {self.training}"

    def word(self, reference: Any) -> str:
        """As forms and the command take it: cache or cache:2."""
        return f"{reference}" if self.weight is None else f"{reference}:{self.weight:g}"
