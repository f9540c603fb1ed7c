from typing import Any

from django.db import models

from mistudio.models.artifact import Artifact
from mistudio.models.language_model import RUN_PRECISIONS, Precision
from mistudio.models.sae import Sae
from mistudio.models.tokenization import Tokenization


class Scan(Artifact):
    """One pass over held-out tokens that collects the evidence for the features of an SAE."""

    NOUN, ROOM, KIND = "scan", "scans", "scan_features"
    BUILT_ON = ("sae",)

    sae = models.ForeignKey(Sae, on_delete=models.PROTECT, related_name="scans")
    tokenization = models.ForeignKey(Tokenization, on_delete=models.PROTECT, related_name="scans")
    n_tokens = models.BigIntegerField(help_text="Held-out tokens to read.")
    scanned_tokens = models.BigIntegerField(null=True, editable=False)
    n_alive = models.PositiveIntegerField(null=True, editable=False)
    n_dead = models.PositiveIntegerField(null=True, editable=False)
    n_dense = models.PositiveIntegerField(null=True, editable=False)
    dtype = models.CharField(
        "precision", max_length=20, choices=RUN_PRECISIONS, default=Precision.FLOAT32
    )  # of the language model while its activations are read
    result = models.JSONField(default=dict, editable=False)

    def params(self) -> dict[str, Any]:
        return {
            **self.sae.placed(),
            "tokens_folder": str(self.tokenization.folder),
            "folder": str(self.folder),
            "tokens": self.n_tokens,
            "dtype": self.dtype,
        }

    def delete_with_files(self) -> None:
        """Features that this scan measured are measured by the newest other one, if there is one."""
        from mistudio.ingest import measure  # late: it reads evidence, which few processes need

        sae, measured_it = self.sae, self.sae.scan_id == self.pk
        super().delete_with_files()
        if measured_it:
            measure(sae, sae.scans.filter(ready_at__isnull=False).order_by("-pk").first())

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        return [self.sae.name], {"tokenization": self.tokenization.name, "tokens": self.n_tokens, "dtype": self.dtype}
