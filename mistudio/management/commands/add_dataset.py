from mistudio.forms.dataset import DatasetForm
from mistudio.management.artifact_command import ArtifactCommand


class Command(ArtifactCommand):
    help = "Read the text of a hub dataset or of local files into a dataset."
    form_class = DatasetForm
    positional = ("source",)
