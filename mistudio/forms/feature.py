from typing import Any

from django import forms
from django.db.models import F, Q, QuerySet

from mistudio.models import Feature, Sae
from mistudio.models.feature import DENSE

SORTS = {
    "index": ("index", "By number"),
    "-density": ("-density", "Densest first"),
    "density": ("density", "Rarest first"),
    "-max": ("-max_activation", "Strongest first"),
    "-mean": ("-mean_activation", "Highest mean first"),
    "label": ("label", "By label"),
}
STATES = {
    "": ("All", Q()),
    "alive": ("Alive", Q(n_fired__gt=0)),
    "dead": ("Dead", Q(n_fired=0)),
    "dense": ("Dense", Q(density__gt=DENSE)),
    "labelled": ("Labelled", ~Q(label="")),
}


class FeatureFilter(forms.Form):
    """The list of features as its address describes it. It also decides previous and next on a feature's page."""

    q = forms.CharField(required=False, max_length=200, strip=True, label="Search")
    state = forms.ChoiceField(required=False, choices=[(key, word) for key, (word, _) in STATES.items()])
    density_min = forms.FloatField(required=False, min_value=0, max_value=1, label="Density from")
    density_max = forms.FloatField(required=False, min_value=0, max_value=1, label="Density to")
    max_min = forms.FloatField(required=False, label="Max from")
    max_max = forms.FloatField(required=False, label="Max to")
    sort = forms.ChoiceField(required=False, choices=[(key, word) for key, (_, word) in SORTS.items()])

    @property
    def order(self) -> str:
        return SORTS[self.value("sort") or "index"][0]

    def value(self, name: str) -> Any:
        """A field that is wrong filters nothing; its message stands beside it."""
        self.is_valid()
        return self.cleaned_data.get(name)

    def rows(self, sae: Sae) -> QuerySet[Feature]:
        rows = sae.features.filter(STATES[self.value("state") or ""][1])
        bounds = {
            "density__gte": self.value("density_min"),
            "density__lte": self.value("density_max"),
            "max_activation__gte": self.value("max_min"),
            "max_activation__lte": self.value("max_max"),
        }
        rows = rows.filter(**{key: value for key, value in bounds.items() if value is not None})
        if words := self.value("q"):
            rows = rows.filter(self._matching(words))
        return rows.order_by(*dict.fromkeys([self.order, "index"]))

    @staticmethod
    def _matching(words: str) -> Q:
        number = words.removeprefix("#").replace(",", "")
        by_text = Q(label__icontains=words) | Q(top_tokens__icontains=words) | Q(notes__icontains=words)
        return by_text | Q(index=int(number)) if number.isdecimal() and len(number) < 10 else by_text

    def beside(self, feature: Feature, rows: QuerySet[Feature]) -> tuple[Feature | None, Feature | None]:
        """The previous and the next feature within this filter, by key and not by counting."""
        field = self.order.removeprefix("-")
        value, down = getattr(feature, field), self.order.startswith("-")
        after = Q(**{f"{field}__{'lt' if down else 'gt'}": value}) | Q(**{field: value, "index__gt": feature.index})
        before = Q(**{f"{field}__{'gt' if down else 'lt'}": value}) | Q(**{field: value, "index__lt": feature.index})
        backwards = [F(field).asc() if down else F(field).desc(), F("index").desc()]
        return rows.filter(before).order_by(*backwards).first(), rows.filter(after).first()


class LabelForm(forms.ModelForm):
    class Meta:
        model = Feature
        fields = ("label", "notes")
        help_texts = {
            "label": "What does it detect? At most 200 characters.",
            "notes": "Doubts, examples, links.",
        }
        widgets = {"notes": forms.Textarea(attrs={"rows": 4})}
