from mistudio.forms.tokenization import TokenizationForm
from mistudio.management.artifact_command import ArtifactCommand


class Command(ArtifactCommand):
    help = "Turn a dataset into the packed tokens of a language model."
    form_class = TokenizationForm
    positional = ("dataset", "language_model")
