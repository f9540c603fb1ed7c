from pathlib import Path

from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.sources import clean_source
from mistudio.models import Dataset


class DatasetForm(ArtifactForm):
    class Meta:
        model = Dataset
        fields = ("source", "text_column", "max_documents", "config", "split", "revision", "name")
        labels = {
            "source": "Hub id, file or folder",
            "text_column": "Text column",
            "max_documents": "At most, documents",
            "config": "Configuration",
        }
        help_texts = {
            "source": "Such as roneneldan/TinyStories, or an absolute path to txt, jsonl, csv or parquet files.",
            "text_column": "Empty: “text”, or the only column with text.",
            "max_documents": "Empty: all.",
            "config": "For hub datasets with several configurations.",
            "split": "For hub datasets.",
            "revision": "Branch, tag or commit of a hub dataset.",
        }

    def clean_source(self) -> str:
        return clean_source(self.cleaned_data["source"], "dataset")

    def clean_max_documents(self) -> int | None:
        value = self.cleaned_data["max_documents"]
        if value == 0:
            self.add_error("max_documents", "0 documents make no dataset. Give 1 or more, or leave it empty for all.")
        return value

    def clean_split(self) -> str:
        return self.cleaned_data["split"] or "train"

    def suggested_name(self) -> str:
        path = Path(self.cleaned_data["source"])
        return path.stem if path.is_absolute() else path.name
