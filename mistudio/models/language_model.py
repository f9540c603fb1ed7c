from typing import Any

from django.db import models

from mistudio.models.artifact import Artifact


class LanguageModel(Artifact):
    """A transformer in safetensors, from the hub or a local folder, with the sites whose activations can be read."""

    NOUN, ROOM, KIND = "language model", "models", "add_model"

    source = models.CharField(max_length=1000, help_text="A hub id such as openai-community/gpt2, or a local folder.")
    revision = models.CharField(max_length=120, blank=True)
    commit = models.CharField(max_length=64, blank=True, editable=False)
    model_type = models.CharField(max_length=60, blank=True, editable=False)
    class_name = models.CharField(max_length=120, blank=True, editable=False)
    causal = models.BooleanField(null=True, editable=False)
    n_layers = models.PositiveIntegerField(null=True, editable=False)
    d_model = models.PositiveIntegerField(null=True, editable=False)
    n_heads = models.PositiveIntegerField(null=True, editable=False)
    vocab_size = models.PositiveIntegerField(null=True, editable=False)
    context_length = models.PositiveIntegerField(null=True, editable=False)
    n_parameters = models.BigIntegerField(null=True, editable=False)
    dtype = models.CharField(max_length=20, blank=True, editable=False)
    sites = models.JSONField(default=list, editable=False)  # [{"name": "blocks.0.hook_resid_pre", "width": 192}]
    files = models.JSONField(default=list, editable=False)  # [{"name", "bytes", "sha256"}]
    licence = models.CharField(max_length=120, blank=True, editable=False)

    def site_width(self, site: str) -> int | None:
        return next((entry["width"] for entry in self.sites if entry["name"] == site), None)

    def expected_files(self) -> dict[str, dict[str, Any]]:
        return {file["name"]: file for file in self.files}

    def params(self) -> dict[str, Any]:
        return {"source": self.source, "revision": self.revision, "folder": str(self.folder)}

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        return [self.source], {"revision": self.commit or self.revision}
