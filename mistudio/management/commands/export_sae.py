from typing import Any

from mistudio.forms.export import ExportForm
from mistudio.management.artifact_command import ArtifactCommand
from mistudio.models import Artifact, Export


class Command(ArtifactCommand):
    help = "Export an SAE in the format of another library, with a certificate, and push it to the hub where wished."
    form_class = ExportForm
    positional = ("sae",)

    def describe(self, artifact: Artifact) -> dict[str, Any]:
        assert isinstance(artifact, Export)
        found = {"archive": str(artifact.path) if artifact.ready else "", "certificate": artifact.certificate}
        return {**super().describe(artifact), **found}
