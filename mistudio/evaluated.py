"""The figures of an evaluation as its page shows them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from django.utils.safestring import SafeString

from mistudio.figures import histogram

LABELS = {
    "explained_variance": "Explained variance",
    "fvu": "FVU",
    "mse": "Squared error",
    "cosine": "Cosine",
    "l2_ratio": "Length kept",
    "relative_reconstruction_bias": "Reconstruction bias",
    "l0": "L0",
    "l1": "L1",
    "ce_recovered": "CE recovered",
    "ce_clean": "CE of the model",
    "ce_sae": "CE with the SAE",
    "ce_zero": "CE with zeros",
    "kl_recovered": "KL recovered",
    "kl_sae": "KL with the SAE",
    "kl_zero": "KL with zeros",
    "nearest_decoder_cosine": "Cosine to the nearest latent",
    "share_of_near_duplicates": "Share of near duplicates",
    "probe_accuracy": "Accuracy of a probe of all dimensions",
    "sparse_probing_accuracy": "Accuracy by latents",
    "sparse_probing_f1": "F1 by latents",
    "tpp": "TPP, latents taken out",
    "spurious_harm": "Harm of the second label",
    "scr": "SCR, latents taken out",
    "absorption_fraction": "Absorption fraction",
    "full_absorption": "Full absorption",
    "spelling_accuracy": "Letters told by a probe",
}
MEANINGS = {
    "l2_ratio": "mean |x̂| / |x|; below 1 it shrinks",
    "relative_reconstruction_bias": "1 is unbiased",
    "mse": "summed over the dimensions, mean over tokens",
    "l0": "latents per token",
    "ce_recovered": "against zero ablation",
    **dict.fromkeys(("ce_clean", "ce_sae", "ce_zero", "kl_sae", "kl_zero"), "nats per token"),
    "kl_recovered": "against zero ablation",
    "share_of_near_duplicates": "cosine above 0.9",
    "nearest_decoder_cosine": "mean over latents",
    "tpp": "how much more the own probe loses than the others",
    "spurious_harm": "accuracy that a misled probe loses",
    "scr": "share of the harm of the second label undone",
}
TITLES = (  # of the groups, each with how the names of its figures begin, and what n counts
    ("Reconstruction", ("explained", "fvu", "mse", "cosine", "l2_", "relative_"), "tokens"),
    ("Sparsity", ("l0", "l1"), "tokens"),
    ("Predictions", ("ce_", "kl_"), "tokens"),
    ("Dictionary", ("nearest", "share_of"), "latents"),
    ("Labelled texts", ("probe", "sparse_probing", "tpp", "spurious", "scr"), "texts"),
    ("Absorption", ("absorption", "full_absorption", "spelling"), "words"),
)
ORDER = {name: place for place, name in enumerate(LABELS)}


class Row(NamedTuple):
    label: str
    meaning: str
    figure: dict[str, Any]
    unit: str  # of n


class Group(NamedTuple):
    title: str
    rows: list[Row]


MISSING = {"ce": "Predictions", "labels": "Labelled texts", "scr": "SCR", "absorption": "Absorption"}


def groups(figures: Mapping[str, dict[str, Any]]) -> list[Group]:
    """Those that have something in them."""
    found = []
    for title, beginnings, unit in TITLES:
        own = [name for name in figures if name.startswith(beginnings)]
        rows = [row(name, figures[name], unit) for name in sorted(own, key=place)]
        if rows:
            found.append(Group(title, said_once(rows)))
    return found


def at_the_end(metrics: Mapping[str, Any]) -> list[Row]:
    """The figures, without intervals, of what was measured when a training ended."""
    return said_once([row(name, {"value": metrics[name]}, "") for name in LABELS if name in metrics])


def counts(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What else was told with them: on how much, and of how many latents."""
    return {name: value for name, value in metrics.items() if name not in LABELS}


def said_once(rows: list[Row]) -> list[Row]:
    """A meaning stands at the first of several figures that follow each other and have it."""
    before = ["", *(one.meaning for one in rows)]
    return [one._replace(meaning="") if one.meaning == last else one for last, one in zip(before, rows, strict=False)]


def place(name: str) -> tuple[int, int]:
    family, n = parted(name)
    return ORDER.get(family, len(ORDER)), n


def row(name: str, figure: dict[str, Any], unit: str) -> Row:
    family, n = parted(name)
    label = LABELS.get(family, family)
    counted = f"{label}: {n}" if n and family in ("tpp", "scr") else f"{label}, k = {n}" if n else label
    return Row(counted, MEANINGS.get(family, ""), figure, unit)


def parted(name: str) -> tuple[str, int]:
    """sparse_probing_accuracy_5 → sparse_probing_accuracy, 5"""
    family, _, n = name.rpartition("_")
    return (family, int(n)) if n.isdecimal() else (name, 0)


def missing(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was not measured, and why not."""
    return [(MISSING.get(name, name), why) for name, why in result.get("not_measured", {}).items()]


def densities(result: Mapping[str, Any]) -> SafeString | str:
    density = result.get("density") or {}
    if not sum(density.get("counts", ())):
        return ""
    title = "How often features fire"
    return histogram(density["counts"], density["edges"], title=title, unit="features", log=False, powers=True)
