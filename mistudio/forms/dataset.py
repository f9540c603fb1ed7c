from pathlib import Path
from typing import Any, ClassVar

from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.byte_size import ByteSizeField
from mistudio.forms.sources import clean_source
from mistudio.models import Dataset
from mistudio.models.dataset import READABLE


class DatasetForm(ArtifactForm):
    class Meta:
        model = Dataset
        fields = (
            "source",
            "text_column",
            "preference",
            "max_documents",
            "max_bytes",
            "skip_broken",
            "deduplicate",
            "encoding",
            "config",
            "split",
            "revision",
            "name",
        )
        field_classes: ClassVar = {"max_bytes": ByteSizeField}
        labels = {
            "source": "Hub id, file or folder",
            "text_column": "Text column",
            "preference": "Of preference pairs, take the answers",
            "max_documents": "At most, documents",
            "max_bytes": "At most, text",
            "skip_broken": "Skip what is broken",
            "deduplicate": "Drop duplicates",
            "config": "Configuration",
        }
        help_texts = {
            "source": f"Such as roneneldan/TinyStories, or the path of a file or of a folder with files: {READABLE}.",
            "text_column": "Empty: the column with conversations, else “text”, else the only one with text.",
            "preference": "Only where a row has a chosen and a rejected answer.",
            "max_documents": "Empty: all.",
            "max_bytes": "Such as 500 MB or 2 GiB, in UTF-8. Empty: all.",
            "skip_broken": "Rows that cannot be read are counted and left out. Otherwise the first one ends the job.",
            "deduplicate": "Of documents that differ in white space at most, the first is kept.",
            "encoding": "Of files that are not UTF-8, such as windows-1252 or gb18030.",
            "config": "For hub datasets with several configurations.",
            "split": "For hub datasets.",
            "revision": "Branch, tag or commit of a hub dataset.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["preference"].required = False

    def clean_source(self) -> str:
        return clean_source(self.cleaned_data["source"], "dataset")

    def clean_max_documents(self) -> int | None:
        value = self.cleaned_data["max_documents"]
        if value == 0:
            self.add_error("max_documents", "0 documents make no dataset. Give 1 or more, or leave it empty for all.")
        return value

    def clean_preference(self) -> str:
        return self.cleaned_data["preference"] or "chosen"

    def clean_split(self) -> str:
        return self.cleaned_data["split"] or "train"

    def suggested_name(self) -> str:
        path = Path(self.cleaned_data["source"])
        return path.stem if path.is_absolute() else path.name
