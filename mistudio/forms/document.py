from typing import Any

from django import forms

from jobs.ml.document_rows import Wanted


class DocumentFilter(forms.Form):
    """The documents of a dataset as their address describes them. What is wrong in it filters nothing, and says so."""

    q = forms.CharField(required=False, max_length=200, label="Search the text")
    shortest = forms.IntegerField(required=False, min_value=0, max_value=2**31, label="Characters from")
    longest = forms.IntegerField(required=False, min_value=0, max_value=2**31, label="Characters to")
    start = forms.IntegerField(required=False, min_value=0, max_value=2**62, label="From document")

    def value(self, name: str) -> Any:
        self.is_valid()
        return self.cleaned_data.get(name)

    @property
    def first(self) -> int:
        return self.value("start") or 0

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.value("q") or "", self.value("shortest"), self.value("longest"))
