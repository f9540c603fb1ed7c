from mistudio.forms.sae import SaeForm
from mistudio.management.artifact_command import ArtifactCommand


class Command(ArtifactCommand):
    help = "Import an SAE of another library from the hub, a folder or an archive."
    form_class = SaeForm
    positional = ("source",)
