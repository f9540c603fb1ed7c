from typing import Any

from django import forms
from django.forms.forms import DeclarativeFieldsMetaclass

from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.architectures.options import OPTIONS, Value
from jobs.ml.config import BadConfig, Member, TrainConfig
from mistudio.formats import short_site
from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.cache_choice import CachesField, offered, weights_of, why_not
from mistudio.forms.several import SeveralBoxes, SeveralField
from mistudio.models import ActivationCache, CacheShare, Tokenization, Training
from mistudio.models.language_model import AUTO
from mistudio.models.plan import MOST, names_of

WIDEST = 2**20
WIDTH, TOKENS = 2048, 1_000_000
MANY = "Several with commas: an SAE for each."


class SiteSelect(forms.Select):
    """The sites that a model lists. Others, and several, are typed into a field beside it, and count then."""

    def value_from_datadict(self, data: Any, files: Any, name: str) -> str | None:
        typed = (data.get(f"{name}_typed") or "").strip()
        return typed or ",".join(names_of(super().value_from_datadict(data, files, name)))


def option_field(name: str) -> SeveralField:
    """Of an option that some architectures have, with the preset of the first."""
    option = OPTIONS[name]
    having = [architecture for architecture in ARCHITECTURES.values() if name in architecture.presets]
    presets = dict.fromkeys(spoken(one.presets[name]) for one in having)
    about = f"{option.help} Empty: {' or '.join(presets)}. {', '.join(one.label for one in having)}."
    return SeveralField(option.kind, label=option.label, help_text=about)


def spoken(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# The options of all architectures, under their names.
OPTION_FIELDS = {name: option_field(name) for name in OPTIONS}
OptionFields = DeclarativeFieldsMetaclass("OptionFields", (forms.Form,), OPTION_FIELDS)


class TrainingForm(OptionFields, ArtifactForm):  # type: ignore[misc,valid-type]
    site = SeveralField(str, widget=SiteSelect, max_length=2000, required=True)
    architecture = SeveralField(
        str, widget=SeveralBoxes(choices=[(name, one.label) for name, one in ARCHITECTURES.items()])
    )
    width = SeveralField(int, help_text=f"Number of latents. 8 to 32 times the width of the site is usual. {MANY}")
    lr = SeveralField(float, label="Learning rate", help_text=f"Empty: 2e-4 · √(16,384 / width). {MANY}")
    seed = SeveralField(int, help_text=f"Decides initial weights; the first also the order of the data. {MANY}")
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
            "site": "The tensor in the model's forward pass that the SAE learns to rebuild.",
            "writes": "Transcoders rebuild this one from the site above.",
            "n_tokens": "The data is read again when it is shorter.",
            "batch_tokens": "Tokens per step.",
            "dtype": "Of the language model; the SAE is always float32. The fastest is bfloat16 on a GPU that has it, "
            "and on a processor where a short trial shows it to be faster than float32.",
            "selection": "The precision in which the active latents are chosen; their values are computed in float32. "
            "The fastest is bfloat16 where the hardware multiplies it.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial.setdefault("width", WIDTH)
        self.initial.setdefault("n_tokens", TOKENS)
        self.initial.setdefault("dtype", AUTO)
        self.initial.setdefault("architecture", "topk")
        self.initial.update(self.initial.pop("options", None) or {})
        for name in ("n_tokens", "batch_tokens", "dtype", "selection"):
            self.fields[name].required = False
        self.chosen = self._chosen_tokenization()
        if self.chosen:
            self._offer_sites(self.chosen)
        caches: Any = self.fields["caches"]
        caches.queryset = ActivationCache.objects.of_team(self.team)  # one that does not fit is refused with the reason
        self.initial["caches"] = caches.widget.value_from_datadict(self.initial, {}, "caches")

    @property
    def option_fields(self) -> list[forms.BoundField]:
        """Those that stand apart."""
        return [self[name] for name in OPTIONS if name != "k"]

    @property
    def option_errors(self) -> bool:
        return any(field.errors for field in self.option_fields)

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

    def _offer_sites(self, tokenization: Tokenization) -> None:
        model, field = tokenization.language_model, self.fields["site"]
        said = names_of(self.initial.get("site"))
        if not said or any(model.why_no_site(name) for name in said):
            said = [middle_residual(tokenization)]
        named = self.initial["site"] = ",".join(said)
        choices = {entry["name"]: f"{entry['name']} · {entry['width']:,} wide" for entry in model.sites}
        field.widget.choices = list(({named: named} | choices).items() if named not in choices else choices.items())

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
        row.options = {name: data[name] for name in OPTIONS if data.get(name)}
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
        model, where = data["tokenization"].language_model.name, short_site(data["site"])
        return f"{model}-{where}-{data['architecture']}-{data['width']}"


def middle_residual(tokenization: Tokenization) -> str:
    model = tokenization.language_model
    wanted = f"blocks.{(model.n_layers or 2) // 2}.hook_resid_pre"
    names = [entry["name"] for entry in model.sites]
    return wanted if wanted in names else (names[0] if names else "")
