from typing import Any

from mistudio.formats import binary
from mistudio.forms.scan import TOKENS, ScanForm
from mistudio.models import Dataset, Evaluation
from mistudio.models.evaluation import Split
from mistudio.models.upload import KEPT

COLUMNS = ("text_column", "label_column", "second_label_column")


class EvaluationForm(ScanForm):
    """As a scan it reads tokens of the model of its SAE; beside that, labelled texts."""

    EMPTY = "holds no such tokens. Choose the part that was trained on, or tokenize again with a larger held-out part."

    class Meta:
        model = Evaluation
        fields = (
            *("sae", "tokenization", "split", "n_tokens", "dtype", "labelled", "text_column", "label_column"),
            *("second_label_column", "absorption", "name"),
        )
        labels = {
            "sae": "SAE",
            "split": "Part",
            "n_tokens": "Tokens",
            "dtype": "Precision",
            "labelled": "Labelled dataset",
            "text_column": "Column with the texts",
            "label_column": "Column with the labels",
            "second_label_column": "Column with second labels",
            "absorption": "Feature absorption",
        }
        help_texts = {
            "tokenization": "Empty: the one that the SAE was trained on.",
            "split": "Figures of tokens that were trained on flatter.",
            "dtype": "Of the language model. Empty: as in the training of the SAE.",
            "n_tokens": f"Empty: {TOKENS:,}, or all there are. The losses are measured on a quarter of them.",
            "labelled": "For sparse probing and TPP. Its source, or the files that were uploaded, is read again.",
            "text_column": "Empty: the one that the dataset was read from.",
            "label_column": "Classes, such as a topic. The eight commonest ones are told apart.",
            "second_label_column": "For SCR: classes that go along with the first ones where they should not.",
            "absorption": "Do latents of words keep silent those of their first letter? Needs a model that can spell.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["split"].required = False
        labelled: Any = self.fields["labelled"]
        labelled.queryset = labelled.queryset.filter(conversations=False).exclude(source="")
        labelled.empty_label = "None"
        labelled.label_from_instance = with_columns

    def clean_split(self) -> str:
        return self.cleaned_data.get("split") or Split.HELD_OUT

    def clean(self) -> dict[str, Any]:
        data = super().clean()
        dataset: Dataset | None = data.get("labelled")
        if dataset is None and "labelled" not in self.errors:
            for name in COLUMNS:
                if data.get(name):
                    self.add_error("labelled", f"Choose the dataset that has the column “{data[name]}”.")
                    break
        elif dataset is not None:
            self._settle_columns(data, dataset)
        return data

    def _settle_columns(self, data: dict[str, Any], dataset: Dataset) -> None:
        if dataset.uploaded and not dataset.upload_folder.is_dir():
            said = f"Of “{dataset.name}” the texts alone were kept. Upload it again, with a column beside the texts;"
            self.add_error(
                "labelled", f"{said} or, if it has more than {binary(KEPT)}, add it by a path or from the hub."
            )
            return
        known = [column["name"] for column in dataset.columns]
        data["text_column"] = data.get("text_column") or dataset.text_column
        there_are = f"“{dataset.name}” has {', '.join(known) or 'no columns'}."
        if not data.get("label_column"):
            self.add_error("label_column", f"Name the column with the labels. {there_are}")
        for name in COLUMNS:
            if data.get(name) and data[name] not in known:
                self.add_error(name, f"There is no column “{data[name]}”. {there_are}")

    def there_are(self, data: dict[str, Any]) -> int:
        if data.get("split") == Split.TRAIN:
            return data["tokenization"].n_tokens or 0
        return super().there_are(data)

    def suggested_name(self) -> str:
        return super().suggested_name().removesuffix("-scan") + "-evaluation"


def with_columns(dataset: Dataset) -> str:
    """As the form offers it."""
    columns = [column["name"] for column in dataset.columns][:8]
    return f"{dataset.name} ({', '.join(columns)})" if columns else dataset.name
