"""The model card that goes with an export: what it is, on what it was trained, what was measured on how much."""

import json
import re
from collections.abc import Mapping
from typing import Any

from jobs.ml.disk import size
from jobs.ml.hub_names import is_hub_id

LIBRARIES = {"saelens": "saelens", "sparsify": "sparsify", "dictionary_learning": "dictionary_learning"}
LOADED = {
    "saelens": 'from sae_lens import SAE\nsae = SAE.load_from_disk("{folder}")',
    "sparsify": 'from sparsify import SparseCoder\nsae = SparseCoder.load_from_disk("{folder}")',
    "dictionary_learning": (
        'from dictionary_learning.utils import load_dictionary\nsae, config = load_dictionary("{folder}", device="cpu")'
    ),
    "gemma_scope": 'import numpy\nweights = numpy.load("{folder}/params.npz")',
    "llama_scope": (
        'from safetensors.torch import load_file\nweights = load_file("{folder}/checkpoints/final.safetensors")'
    ),
}


def card(format: str, label: str, folder: str, about: Mapping[str, Any], certificate: Mapping[str, Any] | None) -> str:
    """about: name, model, dataset, reads, writes, architecture, d_in, width, k, licence, and metrics: [[what, value,
    on what]]."""
    rows = [
        ("Language model", about.get("model")),
        ("Reads", ", ".join(about.get("reads") or ())),
        ("Writes", ", ".join(about.get("writes") or ())),
        ("Architecture", about.get("architecture")),
        ("Width", f"{about['width']:,} latents of {about['d_in']:,} dimensions" if about.get("width") else ""),
        ("k", about.get("k")),
        ("Trained on", about.get("dataset")),
        ("Context", f"{about['context_size']:,} tokens" if about.get("context_size") else ""),
        ("Format", label),
        ("Licence", about.get("licence") or "not stated"),
    ]
    facts = "\n".join(f"| {cell(name)} | {cell(value)} |" for name, value in rows if value)
    measured = "\n".join(
        f"| {cell(name)} | {cell(value)} | {cell(n)} |" for name, value, n in about.get("metrics") or ()
    )
    parts = [
        front(format, about),
        f"# {cell(about.get('name', 'SAE'))}\n\nA sparse autoencoder, exported from miStudio.",
        f"| | |\n|---|---|\n{facts}",
        f"## Measured\n\n| Metric | Value | On |\n|---|---|---|\n{measured}" if measured else "Nothing was measured.",
    ]
    if certificate:
        parts.append(f"## Certificate\n\n{sentence(certificate)}")
    if format in LOADED:
        parts.append(f"## Use\n\n```python\n{LOADED[format].format(folder=folder or '.')}\n```")
    return "\n\n".join(parts) + "\n"


def front(format: str, about: Mapping[str, Any]) -> str:
    """JSON is YAML: nothing that a person typed can say more than its value."""
    tags = ["sparse-autoencoder", "mechanistic-interpretability", "mistudio", format]
    fields: dict[str, Any] = {"library_name": LIBRARIES.get(format, "mistudio"), "tags": tags}
    if about.get("licence"):
        fields["license"] = about["licence"]
    for key, name in (("base_model", "model"), ("datasets", "dataset")):
        id = str(about.get(name) or "")
        if is_hub_id(id) and "/" in id:
            fields[key] = [id]
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())
    return f"---\n{lines}\n---"


def sentence(certificate: Mapping[str, Any]) -> str:
    package = certificate["package"]
    if "needed" in certificate:
        return f"These files were not certified: {too_little(certificate)}"
    by = (
        f"loaded in {package} {certificate['version']}" if certificate["by_peer"] else f"re-read by {package}'s formula"
    )
    compared = certificate["vectors"] - certificate["at_threshold"]
    return (
        f"These files were {by} and compared with miStudio's own computation on {compared:,} vectors, with "
        f"{certificate['active']:.1f} latents active on each: activations differ by {certificate['codes']:.1e} of the "
        f"largest at most, reconstructions by {certificate['x_hat']:.1e}."
        + ("" if certificate["by_peer"] else f" {package} itself was not installed, and was not asked.")
    )


def too_little(certificate: Mapping[str, Any]) -> str:
    needed, there = (size(certificate[name]) for name in ("needed", "available"))
    return f"comparing them in {certificate['package']} would need {needed} of memory, and {there} were free."


def cell(value: Any) -> str:
    """One line of a table, without markup of its own."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)
