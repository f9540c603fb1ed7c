from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from jobs.ml.disk import parse_size

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
        try:
            size = parse_size(text)
        except ValueError as wrong:
            raise ValidationError(str(wrong)) from wrong
        if not 1 <= size <= LARGEST:
            raise ValidationError("Give 1 byte or more, or leave it empty for all.")
        return size
