"""What a scan found, in the files that SAEDashboard writes and Neuronpedia takes: batch-N.json of 128 features each.

What no scan measures is left empty there, as lists of nothing: correlations with neurons and with other features, and
the histogram of all logits. Dead features are skipped, and named as such.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.ml import store
from jobs.ml.errors import CorruptData
from jobs.ml.evidence import Evidence, Example
from jobs.ml.formats.hooks import layer_of
from jobs.ml.tokens import TokenShards

BATCH = 128
WEIGHED = 16  # features, by which the bytes of all are estimated
TOP, PER_PART = 20, 5  # sequences shown, of the strongest and of each interval below
ALIGNED = 3
NOT_MEASURED: dict[str, list[Any]] = {
    name: []
    for name in (
        "correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1",
        "correlated_features_indices", "correlated_features_pearson", "correlated_features_l1",
        "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist",
    )
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    evidence: Evidence
    shards: TokenShards
    pieces: list[str]
    W_dec: np.ndarray  # [M, D]
    dataset: str

    @property
    def alive(self) -> list[int]:
        return np.flatnonzero(np.asarray(self.evidence.n_fired)).tolist()

    def piece(self, token: int) -> str:
        """Some models have more logits than tokens."""
        return self.pieces[token] if token < len(self.pieces) else f"[{token}]"


def opened(
    scan_folder: Path, tokens_folder: Path, sae_folder: Path, model_folder: Path, *, about: Mapping[str, Any]
) -> Source:
    """Raises CorruptData where evidence or vocabulary are gone."""
    try:
        evidence = Evidence(scan_folder)
        shards = TokenShards(tokens_folder, evidence.split)
        pieces = json.loads((model_folder / "vocabulary.json").read_text())
    except (OSError, ValueError) as error:
        raise CorruptData(f"The files of the scan are not whole: {error}.", "Scan the SAE again.") from error
    weights = store.read_tensor(sae_folder / "sae_weights.safetensors", "W_dec")
    return Source(evidence, shards, pieces, weights, str(about.get("dataset") or ""))


def estimated_bytes(source: Source) -> int:
    """Of the batches, by some of the features, spread over all that fire."""
    alive = source.alive
    weighed = alive[:: max(1, len(alive) // WEIGHED)]
    sizes = [len(text(feature(source, index))) for index in weighed]
    return len(alive) * sum(sizes) // max(1, len(sizes))


def write_batches(
    room: Path, source: Source, about: Mapping[str, Any], on_progress: Callable[[float], None] = lambda share: None
) -> str:
    """Returns the folder within `room`."""
    model, layer, name = named(about)
    folder = room / model / f"{layer}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    common = {"model_id": model, "layer": layer, "sae_set": name, "sae_id_suffix": None}
    alive = source.alive
    for n, start in enumerate(range(0, len(alive), BATCH)):
        features = [feature(source, index) for index in alive[start : start + BATCH]]
        write(folder / f"batch-{n}.json", {**common, "features": features})
        on_progress(min(1.0, (start + BATCH) / max(1, len(alive))))
    write(folder / "skipped_indexes.json", skipped(source.evidence, common))
    write(folder / "run_settings.json", settings(source, about, common))
    return f"{model}/{layer}-{name}"


def named(about: Mapping[str, Any]) -> tuple[str, int, str]:
    """Model, layer and set, as in the address of a page there."""
    site = ((about.get("writes") or about.get("reads")) or [""])[0]
    layer = layer_of(site)
    return (
        slug(str(about.get("model") or "model").rpartition("/")[2]),
        layer or 0,
        slug(str(about.get("name") or "sae")),
    )


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-.") or "x"


def write(path: Path, value: Any) -> None:
    path.write_text(text(value), encoding="utf-8")


def text(value: Any) -> str:
    """Of ASCII alone."""
    return json.dumps(value, allow_nan=False)


def skipped(evidence: Evidence, common: dict[str, Any]) -> dict[str, Any]:
    dead = np.flatnonzero(np.asarray(evidence.n_fired) == 0).tolist()
    known = {name: common[name] for name in ("model_id", "layer", "sae_set")}
    return {**known, "log_sparsity": None, "skipped_indexes": dead}


def settings(source: Source, about: Mapping[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_id": common["model_id"],
        "layer": common["layer"],
        "sae_set": common["sae_set"],
        "hook_names": list(about.get("reads") or ()),
        "huggingface_dataset_path": source.dataset,
        "n_prompts_total": source.evidence.n_sequences,
        "n_tokens_in_prompt": source.evidence.context_length,
        "n_tokens_counted": source.evidence.n_tokens,
        "n_features_at_a_time": BATCH,
        "written_by": f"miStudio {store.installed('mistudio') or ''}".strip(),
    }


def feature(source: Source, index: int) -> dict[str, Any]:
    evidence, row = source.evidence, source.W_dec[index].astype(np.float64)
    counts, edges = evidence.histogram(index)
    logits = evidence.logits(index) or {"top": [], "bottom": []}
    return {
        "feature_index": index,
        **alignment(row),
        **NOT_MEASURED,
        "neg_str": [source.piece(token) for token, _ in logits["bottom"]],
        "neg_values": [rounded(value) for _, value in logits["bottom"]],
        "pos_str": [source.piece(token) for token, _ in logits["top"]],
        "pos_values": [rounded(value) for _, value in logits["top"]],
        "frac_nonzero": float(evidence.density[index]),
        "freq_hist_data_bar_heights": counts.tolist(),
        "freq_hist_data_bar_values": [rounded(value) for value in (edges[:-1] + edges[1:]) / 2],
        "n_prompts_total": evidence.n_sequences,
        "n_tokens_in_prompt": evidence.context_length,
        "dataset": source.dataset,
        "vector": [float(value) for value in row],
        "activations": activations(source, index, counts),
    }


def alignment(row: np.ndarray) -> dict[str, Any]:
    """The dimensions that the decoder row writes to most, and their share of its L1 norm."""
    strongest = np.argsort(-np.abs(row), kind="stable")[:ALIGNED]
    whole = float(np.abs(row).sum()) or 1.0
    return {
        "neuron_alignment_indices": strongest.tolist(),
        "neuron_alignment_values": [rounded(value) for value in row[strongest]],
        "neuron_alignment_l1": [rounded(abs(value) / whole) for value in row[strongest]],
    }


def activations(source: Source, index: int, counts: np.ndarray) -> list[dict[str, Any]]:
    """The strongest sequences first, then some of each interval of 0 .. maximum, the strongest interval first."""
    evidence, largest = source.evidence, float(source.evidence.max[index])
    top = {"bin_min": -1, "bin_max": rounded(largest), "bin_contains": -1}
    found = shown(source, evidence.examples(index, TOP), top)
    parts = evidence.quantile_examples(index)
    size, bins = largest / max(1, len(parts)), len(counts) / max(1, len(parts))
    total = int(counts.sum()) or 1
    for n, examples in reversed(list(enumerate(parts))):
        inside = int(counts[round(n * bins) : round((n + 1) * bins)].sum())
        part = {"bin_min": rounded(n * size), "bin_max": rounded((n + 1) * size), "bin_contains": inside / total}
        found += shown(source, examples[:PER_PART], part)
    return found


def shown(source: Source, examples: list[Example], part: dict[str, Any]) -> list[dict[str, Any]]:
    if not examples:
        return []
    numbers = [example.sequence for example in examples]
    (ids, _), lengths = source.shards.rows(numbers), source.shards.lengths(numbers)
    return [
        one(source, example, row[:length].tolist(), part)
        for example, row, length in zip(examples, ids, lengths, strict=True)
    ]


def one(source: Source, example: Example, ids: list[int], part: dict[str, Any]) -> dict[str, Any]:
    values = [0.0] * len(ids)
    for place, value in zip(example.places.tolist(), example.values.tolist(), strict=True):
        values[place] = rounded(value)
    return {
        **part,
        "tokens": [source.piece(token) for token in ids],
        "values": values,
        "qualifying_token_index": int(example.places[example.values.argmax()]),
        "dfa_values": [],
        "dfa_maxValue": 0.0,
        "dfa_targetIndex": 0,
    }


def rounded(value: float) -> float:
    """To five places, as there."""
    return round(float(value), 5)
