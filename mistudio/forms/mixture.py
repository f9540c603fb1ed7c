from typing import Any, ClassVar

from django import forms

from jobs.kinds.mix_datasets import MOST_PARTS
from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.byte_size import ByteSizeField
from mistudio.models import Dataset, DatasetPart

ROWS = 3  # to begin with
COLUMNS = ("part", "weight", "documents", "bytes")


class MixtureForm(ArtifactForm):
    """A dataset mixed of others. Each part is a row of fields: part_0, weight_0, documents_0, bytes_0."""

    class Meta:
        model = Dataset
        fields = ("ends", "seed", "deduplicate", "max_documents", "max_bytes", "name")
        field_classes: ClassVar = {"max_bytes": ByteSizeField}
        labels = {
            "ends": "It ends when",
            "deduplicate": "Drop duplicates",
            "max_documents": "At most, documents",
            "max_bytes": "At most, text",
        }
        help_texts = {
            "ends": "With “all”, the parts that are left go on alone, and the shares change.",
            "seed": "Decides the order in which the documents of each part come.",
            "deduplicate": "Of documents that differ in white space at most, the first is kept, whichever part has it.",
            "max_documents": "Of the whole mixture. Empty: all.",
            "max_bytes": "Of the whole mixture, such as 500 MB, in UTF-8. Empty: all.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("ends", "seed"):
            self.fields[name].required = False
        ready = Dataset.objects.of_team(self.team).filter(ready_at__isnull=False)
        self.ready = {str(row.pk): row for row in ready}
        said = {**self.initial, **{name: self.data[name] for name in self.data}}
        self.n_rows = min(MOST_PARTS, max([ROWS, int(said.get("rows") or 0), *(n + 1 for n in numbers(said))]))
        for n in range(self.n_rows):
            self.add_row(n)

    def add_row(self, n: int) -> None:
        choices = [("", "none"), *((key, row.name) for key, row in self.ready.items())]
        weight = forms.NumberInput(attrs={"step": "any", "min": "0", "placeholder": "1"})
        size = forms.TextInput(attrs={"placeholder": "all, or 500 MB"})
        self.fields[f"part_{n}"] = forms.ChoiceField(choices=choices, required=False, label=f"Dataset {n + 1}")
        self.fields[f"weight_{n}"] = forms.FloatField(required=False, label="Weight", widget=weight)
        self.fields[f"documents_{n}"] = forms.IntegerField(
            required=False, min_value=1, label="Most documents", widget=forms.NumberInput(attrs={"placeholder": "all"})
        )
        self.fields[f"bytes_{n}"] = ByteSizeField(required=False, label="Most text", widget=size)

    @property
    def rows(self) -> list[list[forms.BoundField]]:
        return [[self[f"{column}_{n}"] for column in COLUMNS] for n in range(self.n_rows)]

    def clean_seed(self) -> int:
        return self.cleaned_data["seed"] or 0

    def clean_ends(self) -> str:
        return self.cleaned_data["ends"] or "first"

    def clean(self) -> dict[str, Any]:
        self.chosen = [part for n in range(self.n_rows) if (part := self.clean_row(n))]
        if not self.chosen and not self.errors:
            self.add_error("part_0", "Choose the datasets to mix.")
        return super().clean()

    def clean_row(self, n: int) -> dict[str, Any] | None:
        """The fields of a part; None for a row that was left empty."""
        dataset, weight, documents, size = (self.cleaned_data.get(f"{column}_{n}") for column in COLUMNS)
        if not dataset:
            if weight is not None or documents or size:
                self.add_error(f"part_{n}", "Choose the dataset of this row, or empty the row.")
            return None
        if any(self.cleaned_data.get(f"part_{before}") == dataset for before in range(n)):
            self.add_error(f"part_{n}", "This dataset is a part already. Give it a larger weight instead.")
        if weight is not None and not 0 < weight < 1e9:
            self.add_error(f"weight_{n}", f"{weight:g} is no weight. Give more than 0; 1 for each is usual.")
        return {
            "dataset": self.ready[dataset],
            "weight": 1.0 if weight is None else weight,
            "max_documents": documents,
            "max_bytes": size,
        }

    def save(self, commit: bool = True) -> Dataset:
        row: Dataset = super().save(commit)
        for part in self.chosen:
            DatasetPart.objects.create(mixture=row, **part)
        return row

    def suggested_name(self) -> str:
        return "-".join(part["dataset"].name for part in self.chosen)


def numbers(said: dict[str, Any]) -> list[int]:
    """Of the rows in which something was said."""
    parted = (name.rpartition("_") for name, value in said.items() if value not in (None, ""))
    return [int(n) for column, _, n in parted if column in COLUMNS and n.isdecimal() and len(n) < 4]


def as_said(mixture: Dataset) -> dict[str, Any]:
    """What to fill the form in with, for the same again."""
    said = {name: getattr(mixture, name) for name in ("ends", "seed", "deduplicate", "max_documents", "max_bytes")}
    for n, part in enumerate(mixture.made_of):
        values = (part.dataset_id, f"{part.weight:g}", part.max_documents, part.max_bytes)
        said |= {f"{column}_{n}": value for column, value in zip(COLUMNS, values, strict=True)}
    return {name: value for name, value in said.items() if value not in (None, "") and value is not False}
