from typing import Any

from django.db import models

from mistudio.models.artifact import Artifact


class Dataset(Artifact):
    """Text documents, from the hub or from local files, kept as one column of Parquet."""

    NOUN, ROOM, KIND = "dataset", "datasets", "add_dataset"

    source = models.CharField(
        max_length=2000, help_text="A hub id, or a local txt, jsonl, csv, parquet or arrow file, or a folder."
    )
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
    conversations = models.BooleanField(default=False, editable=False)
    columns = models.JSONField(default=list, editable=False)  # [{"name", "type"}]
    n_documents = models.BigIntegerField(null=True, editable=False)
    n_characters = models.BigIntegerField(null=True, editable=False)
    statistics = models.JSONField(default=dict, editable=False)
    samples = models.JSONField(
        default=list, editable=False
    )  # beginnings of some documents: texts, or lists of messages

    def params(self) -> dict[str, Any]:
        return {
            "source": self.source,
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

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        return [self.source], {
            "config": self.config,
            "split": self.split if self.split != "train" else "",
            "revision": self.revision,
            "text-column": self.text_column,
            "max-documents": self.max_documents,
            "max-bytes": self.max_bytes,
            "encoding": self.encoding,
            "preference": self.preference if self.preference != "chosen" else "",
            "skip-broken": self.skip_broken,
            "deduplicate": self.deduplicate,
        }
