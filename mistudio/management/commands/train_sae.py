from mistudio.forms.training import TrainingForm
from mistudio.management.artifact_command import ArtifactCommand


class Command(ArtifactCommand):
    help = "Train a sparse autoencoder on the activations of one site."
    form_class = TrainingForm
    positional = ("tokenization",)
