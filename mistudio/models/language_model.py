from typing import Any

from django.db import models

from jobs.ml.site_names import head_of, module_of, suggestion
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
    # [{"name": "blocks.0.hook_resid_pre", "width": 192, "path": "model.layers.0", …}]; old rows have no path
    sites = models.JSONField(default=list, editable=False)
    files = models.JSONField(default=list, editable=False)  # [{"name", "bytes", "sha256"}]
    licence = models.CharField(max_length=120, blank=True, editable=False)

    def site_width(self, site: str) -> int | None:
        """None where it is seen only when the model runs: of a module that is named by its path."""
        widths: dict[str, int] = {entry["name"]: entry["width"] for entry in self.sites}
        whole, _ = head_of(site) or ("", 0)
        return widths[whole] // self.n_heads if whole in widths and self.n_heads else widths.get(site)

    def why_no_site(self, name: str) -> str:
        """What is wrong with the name of a site. "" for those listed, their heads, and for any module: whether there
        is one of that path, and what it puts out, is seen when a job runs the model."""
        names = [entry["name"] for entry in self.sites]
        whole, head = head_of(name) or ("", 0)
        if name in names or module_of(name) or (whole in names and head < (self.n_heads or 0)):
            return ""
        if whole in names:
            return f"{whole} has heads 0 to {(self.n_heads or 0) - 1}."
        some = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        others = "One head is blocks.N.hook_z.H, any module module:<path>."
        return f"{self.name} has no site {name}. It has {some}. {suggestion(name, names) or others}"

    def expected_files(self) -> dict[str, dict[str, Any]]:
        return {file["name"]: file for file in self.files}

    def params(self) -> dict[str, Any]:
        return {"source": self.source, "revision": self.revision, "folder": str(self.folder)}

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        return [self.source], {"revision": self.commit or self.revision}
