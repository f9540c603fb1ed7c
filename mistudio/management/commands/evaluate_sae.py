from mistudio.forms.evaluation import EvaluationForm
from mistudio.management.artifact_command import ArtifactCommand


class Command(ArtifactCommand):
    help = "Measure an SAE on tokens and on labelled texts, every figure with its 95 % interval."
    form_class = EvaluationForm
    positional = ("sae",)
