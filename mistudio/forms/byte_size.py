import re
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

UNITS = {"": 1, **{f"{letter}B": 1000**n for n, letter in enumerate(("", "K", "M", "G", "T"))}}
UNITS |= {f"{letter}IB": 1024**n for n, letter in enumerate("KMGT", 1)}
LARGEST = 2**63 - 1


class ByteSizeField(forms.CharField):
    """A number of bytes as people write it: 500 MB, 2 GiB, 1000000."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ("min_value", "max_value"):  # of the number, which the model has
            kwargs.pop(name, None)
        super().__init__(*args, **kwargs)

    def clean(self, value: Any) -> int | None:
        text = super().clean(value)
        if not text:
            return None
        said = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.replace(",", "").strip())
        unit = UNITS.get(said[2].upper()) if said else None
        if said is None or unit is None:
            raise ValidationError(f"“{text}” is no number of bytes. Write 500 MB, 2 GiB or 1000000.")
        size = int(float(said[1]) * unit)
        if not 1 <= size <= LARGEST:
            raise ValidationError("Give 1 byte or more, or leave it empty for all.")
        return size
