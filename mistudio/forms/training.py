from copy import copy
from functools import cached_property
from typing import Any, Self

from django import forms

from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.architectures.options import OPTIONS
from jobs.ml.config import BadConfig, Member, TrainConfig
from mistudio.formats import short_site
from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.cache_choice import CachesField, offered, weights_of, why_not
from mistudio.forms.options import OptionFields, OptionGroup, architecture_rows, option_groups, short_help
from mistudio.forms.several import SeveralBoxes, SeveralField
from mistudio.forms.sites import Grid, middle_residual, site_grid, unlisted
from mistudio.forms.training_plan import Plan
from mistudio.models import ActivationCache, CacheShare, Tokenization, Training
from mistudio.models.language_model import AUTO
from mistudio.models.plan import MOST, names_of

WIDEST = 2**20
WIDTH, TOKENS = 2048, 1_000_000
MOST_PROCESSES = 64


class TrainingForm(OptionFields, ArtifactForm):  # type: ignore[misc,valid-type]
    site = SeveralField(
        str,
        widget=SeveralBoxes,
        max_length=2000,
        help_text="The tensors in the model's forward pass that SAEs learn to rebuild. None: the residual stream in "
        "the middle of the model.",
    )
    architecture = SeveralField(
        str, widget=SeveralBoxes(choices=[(name, one.label) for name, one in ARCHITECTURES.items()])
    )
    width = SeveralField(int, help_text="Number of latents; 8 to 32 times the width of the site is usual.")
    lr = SeveralField(float, label="Learning rate", help_text="Empty: 2e-4 · √(16,384 / width).")
    seed = SeveralField(int, help_text="Decides the initial weights; the first also the order of the data.")
    caches = CachesField(
        queryset=ActivationCache.objects.none(),
        required=False,
        label="Activations",
        help_text="None ticked: computed while it trains. Of several, each batch has its share of each.",
    )

    class Meta:
        model = Training
        fields = (
            "tokenization",
            "site",
            "writes",
            "architecture",
            "width",
            "n_tokens",
            "batch_tokens",
            "lr",
            "seed",
            "dtype",
            "selection",
            "processes",
            "name",
        )
        labels = {
            "writes": "Site to write",
            "n_tokens": "Tokens to train on",
            "batch_tokens": "Batch",
            "dtype": "Precision",
            "selection": "Choice of latents",
        }
        help_texts = {
            "tokenization": "The text, as the tokens of one language model.",
            "writes": "What transcoders rebuild from the site that they read.",
            "n_tokens": "The data is read again when it is shorter.",
            "batch_tokens": "Tokens per step.",
            "dtype": "Of the language model; the SAE is always float32. The fastest is bfloat16 on a GPU that has it, "
            "and on a processor where a short trial shows it to be faster than float32.",
            "selection": "The precision in which the active latents are chosen; their values are computed in float32. "
            "The fastest is bfloat16 where the hardware multiplies it.",
            "processes": "Of this machine: each takes its share of every batch, with GPUs on one of its own.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial.setdefault("width", WIDTH)
        self.initial.setdefault("n_tokens", TOKENS)
        self.initial.setdefault("dtype", AUTO)
        self.initial.setdefault("architecture", "topk")
        self.initial.update(self.initial.pop("options", None) or {})
        for name in ("n_tokens", "batch_tokens", "dtype", "selection", "processes"):
            self.fields[name].required = False
        for name in OPTIONS:
            self.fields[name].help_text = short_help(name)
        self.fields["lr"].widget.attrs["placeholder"] = "by the width"
        self.fields["seed"].widget.attrs["placeholder"] = "0"
        self.fields["writes"].widget.attrs |= {"list": "sites", "class": "mono", "autocomplete": "off"}
        self.chosen = self._chosen_tokenization()
        if self.chosen:  # sites of another model are not kept
            model, said = self.chosen.language_model, names_of(self.initial.get("site"))
            self.initial["site"] = ",".join(name for name in said if not model.why_no_site(name))
        caches: Any = self.fields["caches"]
        caches.queryset = ActivationCache.objects.of_team(self.team)  # one that does not fit is refused with the reason
        self.initial["caches"] = caches.widget.value_from_datadict(self.initial, {}, "caches")

    # ---- what the page shows

    @property
    def site_grid(self) -> Grid:
        return site_grid(self.chosen.language_model, names_of(self["site"].value())) if self.chosen else []

    @property
    def other_sites(self) -> str:
        return unlisted(self.chosen.language_model, names_of(self["site"].value())) if self.chosen else ""

    @property
    def middle(self) -> str:
        """The site that is read where none is ticked."""
        return middle_residual(self.chosen.language_model) if self.chosen else ""

    @property
    def architecture_rows(self) -> list[tuple[str, list[dict[str, Any]]]]:
        return architecture_rows(names_of(self["architecture"].value()))

    @property
    def transcoders(self) -> str:
        return " ".join(name for name, one in ARCHITECTURES.items() if one.transcodes)

    @property
    def option_groups(self) -> list[OptionGroup]:
        return option_groups(self)

    @cached_property
    def plan(self) -> Plan | None:
        """None while the choices are incomplete or wrong."""
        sent = self if self.is_bound else self.sent_as_shown()
        return Plan(sent.instance) if sent.is_valid() else None

    def sent_as_shown(self) -> Self:
        """This form, which nobody filled in, as if it were sent. It shares what was looked up for this one."""
        sent = copy(self)
        sent.data, sent.is_bound = {name: self[name].value() for name in self.fields}, True
        sent._bound_fields_cache = {}  # those of this form have no data
        sent.full_clean()
        return sent

    @property
    def cache_rows(self) -> list[tuple[ActivationCache, bool, str]]:
        """The caches that fit, whether each is ticked, and its weight."""
        said = weights_of(self["caches"].value())
        rows = offered(self.team, self.chosen) if self.chosen else []
        return [(row, str(row.pk) in said, said.get(str(row.pk), "")) for row in rows]

    def _chosen_tokenization(self) -> Tokenization | None:
        field: Any = self.fields["tokenization"]
        field.queryset = field.queryset.select_related("language_model", "dataset")
        key = str((self.data if self.is_bound else self.initial).get("tokenization") or "")
        return field.queryset.filter(pk=int(key)).first() if key.isdecimal() else field.queryset.first()

    # ---- what was chosen

    def clean_site(self) -> str:
        tokenization = self.cleaned_data.get("tokenization")
        site: str = self.cleaned_data["site"] or (middle_residual(tokenization.language_model) if tokenization else "")
        if tokenization and not site:
            raise forms.ValidationError("This model lists no sites. Name one, as module:<path>.")
        return site

    def clean_width(self) -> str:
        widths = self.cleaned_data["width"] or str(WIDTH)
        for width in map(int, names_of(widths)):
            if not 1 <= width <= WIDEST:
                self.add_error("width", f"{width:,} is outside 1 to {WIDEST:,}.")
        return widths

    def clean_n_tokens(self) -> int:
        return self._between("n_tokens", 1, 10**13, TOKENS)

    def clean_batch_tokens(self) -> int:
        return self._between("batch_tokens", 16, 2**20, 4096)

    def clean_architecture(self) -> str:
        names = names_of(self.cleaned_data["architecture"]) or ["topk"]
        if unknown := [name for name in names if name not in ARCHITECTURES]:
            self.add_error("architecture", f"{', '.join(unknown)} is none of {', '.join(ARCHITECTURES)}.")
        return ",".join(names)

    def clean_seed(self) -> str:
        return self.cleaned_data["seed"] or "0"

    def clean_dtype(self) -> str:
        return self.cleaned_data["dtype"] or AUTO

    def clean_selection(self) -> str:
        return self.cleaned_data["selection"] or AUTO

    def clean_processes(self) -> int:
        n, batch = self._between("processes", 1, MOST_PROCESSES, 1), self.cleaned_data.get("batch_tokens")
        if batch and n > 0 and batch % n:
            self.add_error("processes", f"A batch of {batch:,} tokens is not shared evenly by {n} processes.")
        return n

    def _between(self, name: str, low: int, high: int, default: int) -> int:
        value = self.cleaned_data[name]
        if value is None:
            return default
        if not low <= value <= high:
            self.add_error(name, f"{value:,} is outside {low:,} to {high:,}.")
        return value

    def clean(self) -> dict[str, Any]:
        data = super().clean()
        if tokenization := data.get("tokenization"):
            self.instance.language_model = tokenization.language_model
            self._check_sites(tokenization.language_model, data)
            self._check_caches(tokenization, data)
        if not self.errors:
            self._plan(data)
        return data

    def _check_sites(self, model: Any, data: dict[str, Any]) -> None:
        for field in ("site", "writes"):
            wrong = [why for name in names_of(data.get(field)) if (why := model.why_no_site(name))]
            if wrong:
                self.add_error(field, wrong[0])

    def _plan(self, data: dict[str, Any]) -> None:
        """What the engine would refuse is refused here, by the field that it names."""
        row = self.instance
        for name in ("site", "writes", "architecture", "width", "lr", "seed"):
            setattr(row, name, data[name])
        own = {option for name in names_of(row.architecture) for option in ARCHITECTURES[name].presets}
        row.options = {name: data[name] for name in OPTIONS if name in own and data.get(name)}
        transcodes = [name for name in names_of(row.architecture) if ARCHITECTURES[name].transcodes]
        if row.writes and not transcodes:
            self.add_error("writes", "Only transcoders write another site. Leave it empty, or tick one of them.")
            return
        if len(row.members) > MOST:
            self.add_error(
                None, f"That would be {len(row.members):,} SAEs at once, and {MOST} may be: give fewer values."
            )
            return
        for member in row.members:
            try:
                one = {name: value for name, value in member.items() if name not in ("reads", "writes")}
                config = TrainConfig(**one, tokens=data["n_tokens"], batch_tokens=data["batch_tokens"])
                Member(config, tuple(member["reads"]), tuple(member["writes"])).check()
            except BadConfig as wrong:
                field = {"reads": "site"}.get(wrong.field, wrong.field)
                said = str(wrong)
                if field in self.fields and said.startswith(wrong.field):
                    said = self[field].label + said.removeprefix(wrong.field)
                self.add_error(field if field in self.fields else None, f"{said} {wrong.hint}".strip())
                return

    def _check_caches(self, tokenization: Tokenization, data: dict[str, Any]) -> None:
        if {"caches", "site", "batch_tokens"} & set(self.errors):
            return
        for site in (*names_of(data["site"]), *names_of(data.get("writes"))):
            if why := why_not(data["caches"], tokenization, site, data["batch_tokens"]):
                self.add_error("caches", why)
                return

    def save(self, commit: bool = True) -> Training:
        row: Training = super().save(commit)
        for cache, weight in self.cleaned_data["caches"]:
            CacheShare.objects.create(training=row, cache=cache, weight=weight)
        return row

    def suggested_name(self) -> str:
        data = self.cleaned_data
        sites, model = names_of(data["site"]), data["tokenization"].language_model.name
        where = short_site(sites[0]) + (f"+{len(sites) - 1}" if len(sites) > 1 else "")
        return "-".join([model, where, *(brief(names_of(data[name])) for name in ("architecture", "width"))])


def brief(values: list[str]) -> str:
    return "+".join(values) if len(values) < 4 else f"{values[0]}+{len(values) - 1}"
