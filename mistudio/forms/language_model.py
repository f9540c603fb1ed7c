from pathlib import Path

from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.sources import clean_source
from mistudio.models import LanguageModel


class LanguageModelForm(ArtifactForm):
    class Meta:
        model = LanguageModel
        fields = ("source", "revision", "name")
        labels = {"source": "Hub id or folder"}
        help_texts = {
            "source": "Such as openai-community/gpt2, or a folder on this machine with config.json and safetensors.",
            "revision": "Branch, tag or commit of a hub model. Empty: the default branch.",
        }

    def clean_source(self) -> str:
        return clean_source(self.cleaned_data["source"], "model")

    def suggested_name(self) -> str:
        return Path(self.cleaned_data["source"]).name
