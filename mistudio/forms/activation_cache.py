import shutil
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django import forms
from django.conf import settings
from django.db import transaction

from jobs.errors import InvalidInput
from jobs.ml.cache_layout import buffer_bytes, cache_bytes
from jobs.ml.config import UNSETTLED_ROWS
from mistudio.formats import short_site
from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.several import names_of
from mistudio.forms.sites import Grid, middle_residual, site_grid, unlisted
from mistudio.models import ActivationCache, Artifact, Tokenization, Training
from mistudio.models.language_model import AUTO, Precision
from mistudio.structure import weight_bytes

MOST_ROWS = 1024
SPECIAL = (("True", "left out"), ("False", "stored too"))


class SitesField(forms.Field):
    """Names, ticked or with commas between them."""

    widget = forms.CheckboxSelectMultiple

    def to_python(self, value: Any) -> list[str]:
        return names_of(value)


class ActivationCacheForm(ArtifactForm):
    sites = SitesField(help_text="All of them come from one pass of the model over the text.")
    skip_special = forms.ChoiceField(
        label="Special tokens",
        choices=SPECIAL,
        required=False,
        help_text="Beginnings of text and the like. True: left out; False: stored too.",
    )

    class Meta:
        model = ActivationCache
        fields = (
            "tokenization",
            "sites",
            "split",
            "n_tokens",
            "stored",
            "skip_special",
            "dtype",
            "model_batch",
            "name",
        )
        labels = {
            "split": "Part",
            "n_tokens": "Tokens to read",
            "stored": "Stored as",
            "dtype": "Precision",
            "model_batch": "Sequences per pass",
        }
        help_texts = {
            "tokenization": "The text, as the tokens of one language model.",
            "split": "Of the text. Trainings read the one, measurements the other. Empty: train.",
            "n_tokens": "Whole sequences from the beginning. Empty: all there are.",
            "stored": "int8 is half as large, and off by 1/254 of a token's largest entry at most. Empty: bfloat16.",
            "dtype": "Of the language model. The fastest is bfloat16 on a GPU that has it, and on a processor where a "
            "short trial shows it to be faster than float32.",
            "model_batch": "Empty: as many as a short trial shows to be fastest.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial.setdefault("dtype", AUTO)
        for name in ("split", "n_tokens", "stored", "dtype"):
            self.fields[name].required = False
        self.twin: ActivationCache | None = None  # the one that holds these activations already
        field: Any = self.fields["tokenization"]
        field.queryset = field.queryset.select_related("language_model", "dataset")
        key = str((self.data if self.is_bound else self.initial).get("tokenization") or "")
        rows = field.queryset
        self.chosen: Tokenization | None = rows.filter(pk=int(key)).first() if key.isdecimal() else rows.first()
        if self.chosen and not self.initial.get("sites"):
            self.initial["sites"] = middle_residual(self.chosen.language_model)

    # ---- what was chosen

    @property
    def site_grid(self) -> Grid:
        return site_grid(self.chosen.language_model, names_of(self["sites"].value())) if self.chosen else []

    @property
    def other_sites(self) -> str:
        return unlisted(self.chosen.language_model, names_of(self["sites"].value())) if self.chosen else ""

    def clean_sites(self) -> list[str]:
        names: list[str] = self.cleaned_data["sites"]
        tokenization = self.cleaned_data.get("tokenization")
        if tokenization is None:
            return names
        model = tokenization.language_model
        if wrong := next(filter(None, map(model.why_no_site, names)), ""):
            raise forms.ValidationError(wrong)
        there = [entry["name"] for entry in model.sites]
        return sorted(names, key=lambda name: there.index(name) if name in there else len(there))

    def clean_split(self) -> str:
        return self.cleaned_data["split"] or ActivationCache.Split.TRAIN

    def clean_stored(self) -> str:
        return self.cleaned_data["stored"] or ActivationCache.Stored.BFLOAT16

    def clean_dtype(self) -> str:
        return self.cleaned_data["dtype"] or AUTO

    def clean_model_batch(self) -> int | None:
        rows: int | None = self.cleaned_data["model_batch"]
        if rows is not None and not 1 <= rows <= MOST_ROWS:
            raise forms.ValidationError(f"{rows:,} is outside 1 to {MOST_ROWS:,}. Empty: as many as are fastest.")
        return rows

    def clean_skip_special(self) -> bool:
        return self.cleaned_data["skip_special"] != "False"

    def clean_n_tokens(self) -> int | None:
        value, tokenization = self.cleaned_data["n_tokens"], self.cleaned_data.get("tokenization")
        if tokenization is None or "split" not in self.cleaned_data:
            return value
        held_out = self.cleaned_data["split"] == ActivationCache.Split.HELD_OUT
        there_are = (tokenization.n_held_out_tokens if held_out else tokenization.n_tokens) or 0
        if not there_are:
            raise forms.ValidationError(f"“{tokenization.name}” has no tokens in this part. Choose the other one.")
        if value is not None and value < 1:
            raise forms.ValidationError(f"Give 1 to {there_are:,}: so many tokens there are.")
        return min(value or there_are, there_are)

    def clean_name(self) -> str:
        """The last field: by now it is known whether there is such a cache already."""
        self.twin = self.find_twin()
        return "" if self.twin else self.cleaned_data["name"]

    def find_twin(self) -> ActivationCache | None:
        """How many sequences a pass reads makes no other cache."""
        names = ("tokenization", "split", "n_tokens", "stored", "skip_special")
        same = {name: self.cleaned_data.get(name) for name in names}
        dtype = self.cleaned_data.get("dtype")
        sites: set[str] = {*(self.cleaned_data.get("sites") or [])}
        if not sites or None in same.values():
            return None
        rows = ActivationCache.objects.of_team(self.team).filter(**same).select_related("job")
        return next((one for one in rows if sites <= set(one.sites) and dtype in (one.dtype, one.computed_in)), None)

    def clean(self) -> dict[str, Any]:
        data = super().clean()
        if tokenization := data.get("tokenization"):
            self.instance.language_model = tokenization.language_model
        return data

    def suggested_name(self) -> str:
        data = self.cleaned_data
        first = short_site(data["sites"][0])
        more = f"+{len(data['sites']) - 1}" if len(data["sites"]) > 1 else ""
        return f"{data['tokenization'].name}-{first}{more}-{data['stored']}"

    # ---- what comes of it

    def launch(self) -> Artifact | None:
        """The cache that holds these activations already, made again where it was evicted or failed; else a new one."""
        if not self.is_valid() or self.twin is None:
            return super().launch()
        busy = self.twin.job and self.twin.job.unfinished
        try:
            with transaction.atomic():
                if not busy and not (self.twin.ready and self.twin.job):
                    self.twin.start()
        except InvalidInput as refused:
            self.add_error(None, f"{refused.message} {refused.hint}".strip())
            return None
        self.twin.touch()
        self.twin.refresh_from_db()
        return self.twin

    @cached_property
    def estimate(self) -> "Estimate | None":
        """None while the choices are incomplete."""
        if not self.is_bound:
            shown = {name: self[name].value() for name in self.fields}
            return ActivationCacheForm(shown, team=self.team, owner=self.owner).estimate
        if not self.is_valid():
            return None
        self.instance.team = self.team
        return Estimate(self.instance, self.twin)


@dataclass(frozen=True)
class Estimate:
    """What a cache will take, before it is made."""

    cache: ActivationCache
    twin: ActivationCache | None

    @property
    def sites(self) -> list[dict[str, Any]]:
        cache = self.cache
        return [
            {"name": site, "width": width, "bytes": cache_bytes([width], cache.stored, cache.n_tokens)}
            for site, width in zip(cache.sites, cache.widths, strict=True)
        ]

    @property
    def dtype(self) -> str:
        """The precision, or the one that takes the most where it is open."""
        return self.cache.computed_in or Precision.FLOAT32

    @property
    def rows(self) -> int:
        return self.cache.model_batch or UNSETTLED_ROWS

    @property
    def memory(self) -> int:
        """The model's weights, a shard of all sites, and one forward pass at them."""
        cache = self.cache
        weights = weight_bytes(cache.language_model, self.dtype) or 0
        return weights + buffer_bytes(cache.widths, cache.stored, cache.tokenization.context_length, self.rows)

    @cached_property
    def free(self) -> int:
        return shutil.disk_usage(settings.MISTUDIO_DATA).free

    @cached_property
    def _victims(self) -> tuple[list[ActivationCache], str]:
        try:
            return self.cache.victims(), ""
        except InvalidInput as refused:
            return [], f"{refused.message} {refused.hint}"

    @property
    def victims(self) -> list[ActivationCache]:
        return self._victims[0]

    @property
    def refusal(self) -> str:
        return self._victims[1]

    @cached_property
    def speed(self) -> tuple[float, str] | None:
        """Tokens per second, and where that was measured; None where it was not."""
        of_model = {"team": self.cache.team, "language_model": self.cache.language_model}
        made = ActivationCache.objects.filter(**of_model, tokens_per_second__isnull=False).first()
        if made and made.tokens_per_second:
            return made.tokens_per_second, f"“{made.name}” with {len(made.sites)} of its sites"
        run = Training.objects.filter(**of_model, caches=None, result__seconds__gt=0).first()
        if run:
            return run.result["tokens"] / run.result["seconds"], f"training “{run.name}”, which also fitted its SAE"
        return None

    @property
    def seconds(self) -> float | None:
        return self.cache.n_tokens / self.speed[0] if self.speed else None
