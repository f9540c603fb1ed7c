"""Fields that take several values with commas between them."""

import math
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from mistudio.models.plan import names_of as names_of

MOST = 16


class SeveralField(forms.CharField):
    """Numbers, or words out of some. Clean values have a comma between them and no space."""

    def __init__(self, kind: type[int | float | str], **kwargs: Any) -> None:
        super().__init__(**{"max_length": 200, "required": False, **kwargs})
        self.kind = kind
        self.choices = getattr(self.widget, "choices", ())  # what its words are called

    def clean(self, value: Any) -> str:
        words = names_of(super().clean(",".join(names_of(value))))
        if len(words) > MOST:
            raise ValidationError(f"{len(words)} values are too many. Give {MOST} at most.")
        return ",".join(dict.fromkeys(self.normal(word) for word in words))

    def normal(self, word: str) -> str:
        if self.kind is str:
            return word
        try:
            number: float = int(word) if self.kind is int else float(word)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            what = "whole number" if self.kind is int else "number"
            raise ValidationError(f"Enter a {what}: “{word}” is none. Several have commas between them.")
        return f"{number:g}" if isinstance(number, float) else str(number)


class SeveralBoxes(forms.CheckboxSelectMultiple):
    """Boxes, or the words that addresses and commands have."""

    def value_from_datadict(self, data: Any, files: Any, name: str) -> list[str]:
        return names_of(super().value_from_datadict(data, files, name))

    def format_value(self, value: Any) -> list[str]:
        return names_of(value)
