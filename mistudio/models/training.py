from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import models

from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.architectures.options import OPTIONS
from jobs.ml.config import SELECTIONS
from jobs.models import Job
from mistudio.models.activation_cache import ActivationCache
from mistudio.models.artifact import Artifact
from mistudio.models.language_model import AUTO, RUN_PRECISIONS, LanguageModel, Precision
from mistudio.models.plan import best_of_each, names_of, saes_of
from mistudio.models.tokenization import Tokenization

if TYPE_CHECKING:
    from mistudio.models.sae import Sae

SELECTION = [(AUTO, "the fastest here"), *((name, name) for name in SELECTIONS)]
LOGGED = 2000  # steps, at most: a page reads them all


class Training(Artifact):
    """A run: sparse autoencoders that learn side by side from one pass of the language model, with their metrics and
    checkpoints.

    What they may differ in, `site` to `options`, holds several values with commas between them: there is an SAE for
    each combination (see `saes_of`).
    """

    NOUN, ROOM, KIND = "training", "trainings", "train_sae"
    BUILT_ON = ("language_model",)

    language_model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="trainings")
    tokenization = models.ForeignKey(Tokenization, on_delete=models.PROTECT, related_name="trainings")
    # none: activations are computed while it trains
    caches = models.ManyToManyField(ActivationCache, through="CacheShare", related_name="trainings")
    site = models.CharField(max_length=2000)
    writes = models.CharField("site to write", max_length=120, blank=True)  # of transcoders
    architecture = models.CharField(max_length=200, default="topk")
    width = models.CharField(max_length=200)
    lr = models.CharField("learning rate", max_length=200, blank=True)
    seed = models.CharField(max_length=200, default="0")
    options = models.JSONField(default=dict, blank=True)  # name → values with commas between them
    n_tokens = models.BigIntegerField(help_text="Tokens to train on; the data is read again when it is shorter.")
    batch_tokens = models.PositiveIntegerField(default=4096)
    dtype = models.CharField(
        "precision", max_length=20, choices=RUN_PRECISIONS, default=Precision.FLOAT32
    )  # of the language model while its activations are read
    selection = models.CharField(
        "choice of latents", max_length=20, choices=SELECTION, default=AUTO
    )  # the precision in which active latents are chosen
    processes = models.PositiveSmallIntegerField(default=1)  # that share each batch
    result = models.JSONField(default=dict, editable=False)

    @cached_property
    def members(self) -> list[dict[str, Any]]:
        """Its SAEs, each as the engine takes it."""
        return saes_of(self)

    @property
    def label(self) -> str:
        """What it trains, in a few words."""
        return ", ".join(ARCHITECTURES[name].label for name in names_of(self.architecture) if name in ARCHITECTURES)

    @property
    def options_said(self) -> list[tuple[str, str]]:
        """Labels of the options that were set, with their values."""
        return [(OPTIONS[name].label, values) for name, values in self.options.items() if name in OPTIONS]

    @property
    def best(self) -> "list[Sae]":
        """Of its SAEs that rebuild the same, the one that explains most of what is held out."""
        return best_of_each(self.saes.all(), lambda sae: sae.rebuilds, lambda sae: sae.explained_variance)

    def sae_folder(self, number: int) -> Path:
        return self.folder / (f"sae-{number}" if number else "sae")

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
            "saes": [{"folder": str(self.sae_folder(n)), **member} for n, member in enumerate(self.members)],
            "tokens": self.n_tokens,
            "batch_tokens": self.batch_tokens,
            "seed": self.members[0]["seed"],
            "dtype": self.dtype,
            "selection": self.selection,
            "log_every": max(10, self.steps // LOGGED),
            "model_name": self.language_model.source,
            "dataset_name": self.tokenization.dataset.origin,
            "caches": [str(share.cache.folder) for share in reads],
            "processes": self.processes,
            "cache_weights": [share.weight for share in reads if share.weight is not None],
        }

    def start(self) -> Job:
        for cache in self.caches.all():
            cache.touch()
        return super().start()

    def expected_files(self) -> dict[str, dict[str, Any]]:
        """Those of all its SAEs."""
        return {
            f"{sae.folder.name}/{name}": entry
            for sae in self.saes.all()
            for name, entry in sae.expected_files().items()
        }

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        return [self.tokenization.name], {
            "site": self.site,
            "cache": [share.word(share.cache.name) for share in self.reads],
            "writes": self.writes,
            "architecture": self.architecture,
            "width": self.width,
            **{name.replace("_", "-"): values for name, values in self.options.items()},
            "lr": self.lr,
            "tokens": self.n_tokens,
            "batch-tokens": self.batch_tokens,
            "seed": self.seed,
            "dtype": self.dtype,
            "selection": "" if self.selection == AUTO else self.selection,
            "processes": "" if self.processes == 1 else self.processes,
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
