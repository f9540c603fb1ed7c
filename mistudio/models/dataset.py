from pathlib import Path
from typing import Any

from django.db import models

from mistudio.models.artifact import Artifact


class Dataset(Artifact):
    """Text documents, from the hub or from local files, kept as one column of Parquet."""

    NOUN, ROOM, KIND = "dataset", "datasets", "add_dataset"

    source = models.CharField(
        max_length=2000, help_text="A hub id, or a local txt, jsonl, csv or parquet file, or a folder."
    )
    config = models.CharField(max_length=120, blank=True)
    split = models.CharField(max_length=120, blank=True, default="train")
    revision = models.CharField(max_length=120, blank=True)
    text_column = models.CharField(max_length=120, blank=True, help_text="Empty: the only text column, or “text”.")
    max_documents = models.PositiveIntegerField(null=True, blank=True)
    uploaded = models.JSONField(default=list, editable=False)  # names of the files, where people sent them
    columns = models.JSONField(default=list, editable=False)  # [{"name", "type"}]
    n_documents = models.BigIntegerField(null=True, editable=False)
    n_characters = models.BigIntegerField(null=True, editable=False)
    statistics = models.JSONField(default=dict, editable=False)
    samples = models.JSONField(default=list, editable=False)  # first characters of some documents

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
        return {
            "source": self.source_path,
            "config": self.config,
            "split": self.split,
            "revision": self.revision,
            "text_column": self.text_column,
            "max_documents": self.max_documents,
            "folder": str(self.folder),
        }

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        files = self.uploaded[:1] if len(self.uploaded) == 1 else self.uploaded and ["folder-of-the-files"]
        return [f"./{files[0]}" if files else self.source], {
            "config": self.config,
            "split": self.split if self.split != "train" else "",
            "revision": self.revision,
            "text-column": self.text_column,
            "max-documents": self.max_documents,
        }
