"""Which activation caches a training reads, each with its weight: 3:2,4:1 is cache 3 twice as often as cache 4."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from mistudio.forms.several import names_of
from mistudio.models import ActivationCache, Tokenization

Chosen = list[tuple[ActivationCache, float | None]]


class CacheBoxes(forms.CheckboxSelectMultiple):
    """Boxes, with the weights in fields beside them; or the words that addresses and commands have."""

    def value_from_datadict(self, data: Any, files: Any, name: str) -> list[str]:
        words = names_of(super().value_from_datadict(data, files, name))
        weights = {word: str(data.get(f"weight_{word}") or "").strip() for word in words}
        return [f"{word}:{weight}" if weight else word for word, weight in weights.items()]


class CachesField(forms.ModelMultipleChoiceField):
    widget = CacheBoxes

    def clean(self, value: Any) -> Chosen:  # type: ignore[override]  # rows with their weights
        said = weights_of(value)
        rows = super().clean(list(said)).select_related("language_model", "tokenization").order_by("pk")
        chosen: Chosen = [(row, weight(said[str(row.pk)])) for row in rows]
        given = [w for _, w in chosen if w is not None]
        if 0 < len(given) < len(chosen):
            raise ValidationError("Give each of the caches a weight, or none of them: each counts by its tokens then.")
        return chosen if len(chosen) > 1 else [(row, None) for row, _ in chosen]


def weights_of(words: Any) -> dict[str, str]:
    """Key of each cache → its weight as it was said, "" where none was."""
    return {key: said for key, _, said in (word.partition(":") for word in words or ())}


def weight(said: str) -> float | None:
    """Raises ValidationError."""
    try:
        value = float(said) if said else None
    except ValueError:
        value = 0.0
    if value is not None and not 0 < value < 1e9:
        raise ValidationError(f"“{said}” is no weight. Give more than 0; 1 for each is usual.")
    return value


def offered(team: Any, tokenization: Tokenization) -> list[ActivationCache]:
    """Those that could be read, of this text first."""
    rows = ActivationCache.objects.of_team(team).select_related("tokenization", "language_model")
    of_model = rows.filter(language_model=tokenization.language_model, split=ActivationCache.Split.TRAIN)
    fitting = (row for row in of_model.filter(ready_at__isnull=False) if not row.unfit(tokenization, row.sites[0]))
    return sorted(fitting, key=lambda row: row.tokenization_id != tokenization.pk)


def why_not(chosen: Chosen, tokenization: Tokenization, site: str, batch_tokens: int) -> str:
    """Why a training cannot read these; "" where it can. What the engine demands, before a job has to say it."""
    caches = [cache for cache, _ in chosen]
    if why := next(filter(None, (cache.unfit(tokenization, site) for cache in caches)), ""):
        return why
    if caches and all(cache.tokenization_id != tokenization.pk for cache in caches):
        return (
            f"No activations of “{tokenization}” are among them, but the SAE is measured on its held-out part. "
            "Add a cache of it, or choose the text of one of these."
        )
    return next(filter(None, (unlike(one, two) for one, two in pairwise(caches))), "") or too_rare(chosen, batch_tokens)


def unlike(one: ActivationCache, two: ActivationCache) -> str:
    theirs: Mapping[str, Any] = two.made_by
    differs = next((what for what, made in one.made_by.items() if made != theirs[what]), "")
    return f"“{one}” and “{two}” do not go together: they are of different {differs}." if differs else ""


def too_rare(chosen: Chosen, batch_tokens: int) -> str:
    sizes = {cache.name: weight or cache.n_stored or 0 for cache, weight in chosen}
    name = min(sizes, key=lambda name: sizes[name], default="")
    if not name or sizes[name] * batch_tokens >= sum(sizes.values()):
        return ""
    return (
        f"A batch of {batch_tokens:,} tokens would have none of “{name}”. "
        "Use larger batches, or weights that are less far apart."
    )
