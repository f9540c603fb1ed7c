from mistudio.forms.activation_cache import ActivationCacheForm
from mistudio.management.artifact_command import ArtifactCommand


class Command(ArtifactCommand):
    help = "Keep the activations of some sites on disk, for trainings to read. An equal cache is found, not made again."
    form_class = ActivationCacheForm
    positional = ("tokenization",)
