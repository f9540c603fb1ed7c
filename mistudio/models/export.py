from pathlib import Path
from typing import Any

from django.db import models

from jobs.ml.formats import NEURONPEDIA, WRITTEN
from jobs.ml.formats.hooks import module_that_puts_out
from mistudio.models.artifact import Artifact
from mistudio.models.sae import Sae

CHOICES = list(WRITTEN.items())


class Export(Artifact):
    """An SAE in the format of another library, as an archive, with what was found when it was read there."""

    NOUN, ROOM, KIND = "export", "exports", "export_sae"
    BUILT_ON = ("sae",)

    sae = models.ForeignKey(Sae, on_delete=models.PROTECT, related_name="exports")
    format = models.CharField(max_length=30, choices=CHOICES, default="saelens")
    repository = models.CharField("hub repository", max_length=200, blank=True)
    public = models.BooleanField(default=False)  # the repository, where the export makes it
    licence = models.CharField(max_length=120, blank=True)
    archive = models.CharField(max_length=200, blank=True, editable=False)  # its file in the folder
    result = models.JSONField(default=dict, editable=False)

    @property
    def path(self) -> Path:
        return self.folder / self.archive

    @property
    def certificate(self) -> dict[str, Any]:
        """See jobs.ml.formats.certify; empty for what nothing computes from."""
        return self.result.get("certificate") or {}

    @property
    def url(self) -> str:
        """Of the commit on the hub."""
        url: str = self.result.get("url", "")
        return url if url.startswith(("https://", "http://")) else ""

    def params(self) -> dict[str, Any]:
        sae = self.sae
        known = {
            "sae_folder": str(sae.folder),
            "folder": str(self.folder),
            "format": self.format,
            "about": {**sae.about(), "licence": self.licence or sae.licence},
            "module": module_that_puts_out((sae.writes or sae.reads)[0], sae.language_model.sites),
            "repository": self.repository,
            "private": not self.public,
        }
        if self.format == NEURONPEDIA and sae.scan:
            known |= {
                "scan_folder": str(sae.scan.folder),
                "tokens_folder": str(sae.scan.tokenization.folder),
                "model_folder": str(sae.language_model.folder),
            }
        return known

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        return [self.sae.name], {
            "format": self.format,
            "repository": self.repository,
            "public": bool(self.repository and self.public),
            "licence": self.licence,
        }
