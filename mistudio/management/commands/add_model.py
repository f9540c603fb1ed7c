from mistudio.forms.language_model import LanguageModelForm
from mistudio.management.artifact_command import ArtifactCommand


class Command(ArtifactCommand):
    help = "Register a language model from a hub id or a local folder."
    form_class = LanguageModelForm
    positional = ("source",)
