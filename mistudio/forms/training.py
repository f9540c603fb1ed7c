from typing import Any

from django import forms

from mistudio.formats import short_site
from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.cache_choice import CachesField, offered, weights_of, why_not
from mistudio.models import ActivationCache, CacheShare, Tokenization, Training
from mistudio.models.language_model import AUTO

WIDEST = 2**20
WIDTH, TOKENS = 2048, 1_000_000
DEFAULTS = {"topk": ("k", 32), "standard": ("l1_coefficient", 5.0)}


class SiteSelect(forms.Select):
    """The sites that a model lists. One of another name is typed into a field beside it, and counts then."""

    def value_from_datadict(self, data: Any, files: Any, name: str) -> str | None:
        return (data.get(f"{name}_typed") or "").strip() or super().value_from_datadict(data, files, name)


class TrainingForm(ArtifactForm):
    site = forms.CharField(widget=SiteSelect, max_length=120)
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
            "architecture",
            "width",
            "k",
            "l1_coefficient",
            "n_tokens",
            "batch_tokens",
            "lr",
            "seed",
            "dtype",
            "name",
        )
        labels = {
            "k": "k",
            "l1_coefficient": "L1 coefficient",
            "n_tokens": "Tokens to train on",
            "batch_tokens": "Batch",
            "lr": "Learning rate",
            "dtype": "Precision",
        }
        help_texts = {
            "tokenization": "The text, as the tokens of one language model.",
            "site": "The tensor in the model's forward pass that the SAE learns to rebuild.",
            "width": "Number of latents. 8 to 32 times the width of the site is usual.",
            "k": "Latents that may be active on a token. TopK only. Empty: 32.",
            "l1_coefficient": "Weight of the sparsity penalty. ReLU + L1 only. Empty: 5.",
            "n_tokens": "The data is read again when it is shorter.",
            "batch_tokens": "Tokens per step.",
            "lr": "Empty: 2e-4 · √(16,384 / width).",
            "seed": "Decides initial weights and the order of the data.",
            "dtype": "Of the language model; the SAE is always float32. The fastest is bfloat16 on a GPU that has it, "
            "and on a processor where a short trial shows it to be faster than float32.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial.setdefault("width", WIDTH)
        self.initial.setdefault("n_tokens", TOKENS)
        self.initial.setdefault("dtype", AUTO)
        for name in ("architecture", "width", "n_tokens", "batch_tokens", "seed", "dtype"):
            self.fields[name].required = False
        self.chosen = self._chosen_tokenization()
        if self.chosen:
            self._offer_sites(self.chosen)
        caches: Any = self.fields["caches"]
        caches.queryset = ActivationCache.objects.of_team(self.team)  # one that does not fit is refused with the reason
        self.initial["caches"] = caches.widget.value_from_datadict(self.initial, {}, "caches")

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
        named = self.initial.get("site") or ""
        if not named or model.why_no_site(named):
            named = self.initial["site"] = middle_residual(tokenization)
        choices = {entry["name"]: f"{entry['name']} · {entry['width']:,} wide" for entry in model.sites}
        field.widget.choices = list(({named: named} | choices).items() if named not in choices else choices.items())

    def clean_width(self) -> int:
        return self._between("width", 1, WIDEST, WIDTH)

    def clean_n_tokens(self) -> int:
        return self._between("n_tokens", 1, 10**13, TOKENS)

    def clean_batch_tokens(self) -> int:
        return self._between("batch_tokens", 16, 2**20, 4096)

    def clean_architecture(self) -> str:
        return self.cleaned_data["architecture"] or "topk"

    def clean_seed(self) -> int:
        return self.cleaned_data["seed"] or 0

    def clean_dtype(self) -> str:
        return self.cleaned_data["dtype"] or AUTO

    def clean_lr(self) -> float | None:
        value = self.cleaned_data["lr"]
        if value is not None and not 0 < value <= 1:
            self.add_error("lr", f"{value:g} is outside 0 to 1. Leave it empty for the width's default.")
        return value

    def clean_l1_coefficient(self) -> float | None:
        value = self.cleaned_data["l1_coefficient"]
        if value is not None and not 0 <= value < 1e6:
            self.add_error("l1_coefficient", f"{value:g} must be 0 or more. 1 to 20 is usual.")
        return value

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
            self._check_site(tokenization.language_model, data.get("site"))
            self._check_caches(tokenization, data)
        self._settle_sparsity(data)
        return data

    def _check_site(self, model: Any, site: str | None) -> None:
        if site and (wrong := model.why_no_site(site)):
            self.add_error("site", wrong)

    def _check_caches(self, tokenization: Tokenization, data: dict[str, Any]) -> None:
        if {"caches", "site", "batch_tokens"} & set(self.errors):
            return
        if why := why_not(data["caches"], tokenization, data["site"], data["batch_tokens"]):
            self.add_error("caches", why)

    def _settle_sparsity(self, data: dict[str, Any]) -> None:
        """Each architecture has one sparsity setting; the other's is dropped."""
        architecture = data.get("architecture", "topk")
        for name, (field, default) in DEFAULTS.items():
            if name != architecture:
                data[field] = None
            elif data.get(field) is None and field not in self.errors:
                data[field] = default
        k, width = data.get("k"), data.get("width")
        if k is not None and width is not None and not 1 <= k <= width:
            self.add_error(
                "k",
                f"k is {k:,}, but only 1 to {width:,} of the latents can be active. Lower k or raise the width.",
            )

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
