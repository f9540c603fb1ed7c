from pathlib import Path
from typing import Any, ClassVar

from django.db import models

from jobs.ml.text_files import FORMATS, PACKINGS
from mistudio.models.artifact import Artifact

*MOST_FORMATS, LAST_FORMAT = (ending.removeprefix(".") for ending in FORMATS)
PACKED = ", ".join(ending.removeprefix(".") for ending in (*PACKINGS, ".zip"))
READABLE = f"{', '.join(MOST_FORMATS)} or {LAST_FORMAT}, packed ({PACKED}) or not"  # files, in words


class Dataset(Artifact):
    """Text documents or conversations, from the hub, from local files or mixed of other datasets, kept as Parquet."""

    NOUN, ROOM, KIND = "dataset", "datasets", "add_dataset"

    source = models.CharField(max_length=2000)  # a hub id or a path; empty: mixed of its parts
    config = models.CharField(max_length=120, blank=True)
    split = models.CharField(max_length=120, blank=True, default="train")
    revision = models.CharField(max_length=120, blank=True)
    text_column = models.CharField(max_length=120, blank=True, help_text="Empty: the only text column, or “text”.")
    encoding = models.CharField(max_length=40, blank=True)
    preference = models.CharField(
        max_length=8, default="chosen", choices=[("chosen", "chosen"), ("rejected", "rejected")]
    )
    max_documents = models.PositiveIntegerField(null=True, blank=True)
    max_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    skip_broken = models.BooleanField(default=False)
    deduplicate = models.BooleanField(default=False)
    seed = models.PositiveIntegerField(default=0)
    ends = models.CharField(
        max_length=5,
        default="first",
        choices=[("first", "the first part is used up"), ("all", "all parts are used up")],
    )
    conversations = models.BooleanField(default=False, editable=False)
    uploaded = models.JSONField(default=list, editable=False)  # names of the files, where people sent them
    columns = models.JSONField(default=list, editable=False)  # [{"name", "type"}]
    n_documents = models.BigIntegerField(null=True, editable=False)
    n_characters = models.BigIntegerField(null=True, editable=False)
    statistics = models.JSONField(default=dict, editable=False)
    samples = models.JSONField(
        default=list, editable=False
    )  # beginnings of some documents: texts, or lists of messages

    @property
    def kind(self) -> str:
        return self.KIND if self.source else "mix_datasets"

    @property
    def made_of(self) -> "list[DatasetPart]":
        """The parts of a mixture, with the share of its text that each has."""
        parts = list(self.parts.select_related("dataset"))
        total = sum(part.n_bytes or 0 for part in parts)
        for part in parts:
            part.share = part.n_bytes / total if total and part.n_bytes is not None else None
        return parts

    def users(self) -> list[Artifact]:
        mixtures: Any = Dataset.objects.filter(parts__dataset=self)[:20]
        return [*super().users(), *mixtures]

    @property
    def origin(self) -> str:
        """Where it comes from, as others can find it; of what was uploaded or mixed here its name."""
        return self.name if self.uploaded or not self.source else self.source

    @property
    def upload_folder(self) -> Path:
        return self.folder / "upload"

    @property
    def source_path(self) -> str:
        """What the job reads. Of uploaded files `source` says so, in words."""
        if not self.uploaded:
            return self.source
        return str(self.upload_folder / self.uploaded[0] if len(self.uploaded) == 1 else self.upload_folder)

    def params(self) -> dict[str, Any]:
        if not self.source:
            return self.mixing_params()
        return {
            "source": self.source_path,
            "config": self.config,
            "split": self.split,
            "revision": self.revision,
            "text_column": self.text_column,
            "max_documents": self.max_documents,
            "max_bytes": self.max_bytes,
            "encoding": self.encoding,
            "preference": self.preference,
            "skip_broken": self.skip_broken,
            "deduplicate": self.deduplicate,
            "folder": str(self.folder),
        }

    def mixing_params(self) -> dict[str, Any]:
        return {
            "parts": [part.params() for part in self.made_of],
            "seed": self.seed,
            "ends": self.ends,
            "deduplicate": self.deduplicate,
            "max_documents": self.max_documents,
            "max_bytes": self.max_bytes,
            "folder": str(self.folder),
        }

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        limits = {"max-documents": self.max_documents, "max-bytes": self.max_bytes, "deduplicate": self.deduplicate}
        if not self.source:
            ends = self.ends if self.ends != "first" else ""
            return [part.word() for part in self.made_of], {"seed": self.seed or "", "ends": ends, **limits}
        files = self.uploaded[:1] if len(self.uploaded) == 1 else self.uploaded and ["folder-of-the-files"]
        return [f"./{files[0]}" if files else self.source], {
            "config": self.config,
            "split": self.split if self.split != "train" else "",
            "revision": self.revision,
            "text-column": self.text_column,
            **limits,
            "encoding": self.encoding,
            "preference": self.preference if self.preference != "chosen" else "",
            "skip-broken": self.skip_broken,
        }


class DatasetPart(models.Model):
    """A dataset as part of a mixture: how much of it, and what came."""

    share: float | None = None  # of the bytes of the mixture; see Dataset.made_of

    mixture = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="parts")
    dataset = models.ForeignKey(Dataset, on_delete=models.PROTECT, related_name="mixtures")
    weight = models.FloatField(default=1.0)
    max_documents = models.PositiveIntegerField(null=True, blank=True)
    max_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    n_documents = models.BigIntegerField(null=True, editable=False)
    n_bytes = models.BigIntegerField(null=True, editable=False)
    n_duplicates = models.BigIntegerField(null=True, editable=False)
    ended = models.CharField(max_length=40, blank=True, editable=False)  # why nothing more came of it

    class Meta:
        ordering: ClassVar[list[str]] = ["pk"]
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["mixture", "dataset"], name="dataset_once_per_mixture")
        ]

    def __str__(self) -> str:
        return f"{self.dataset} in {self.mixture}"

    def params(self) -> dict[str, Any]:
        return {
            "folder": str(self.dataset.folder),
            "name": self.dataset.name,
            "weight": self.weight,
            "max_documents": self.max_documents,
            "max_bytes": self.max_bytes,
        }

    def word(self) -> str:
        """As the command takes it: texts=3,1000documents,10000000B."""
        limits = [f",{self.max_documents}documents"] if self.max_documents else []
        limits += [f",{self.max_bytes}B"] if self.max_bytes else []
        return f"{self.dataset.name}={self.weight:g}{''.join(limits)}"
