from mistudio.forms.scan import ScanForm
from mistudio.management.artifact_command import ArtifactCommand


class Command(ArtifactCommand):
    help = "Collect the evidence for the features of an SAE on held-out tokens."
    form_class = ScanForm
    positional = ("sae",)
