"""What an SAE keeps of the model's activations and of its predictions, on held-out tokens.

Sums run in float64 over all tokens; a ratio is formed once, at the end. Definitions as in SAELens 6.54 /
SAEBench: explained variance is 1 - E|x - x_hat|^2 / (E|x|^2 - |E x|^2), CE recovered (CE_zero - CE_sae) /
(CE_zero - CE_clean), KL recovered (KL_zero - KL_sae) / KL_zero. docs/correctness.md has all of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from jobs.ml.bootstrap import RESAMPLES
from jobs.ml.boundaries import Boundaries
from jobs.ml.language_model import is_causal
from jobs.ml.place import find_place
from jobs.ml.predictions import Predictions
from jobs.ml.reconstruction import Reconstruction
from jobs.ml.sae import Sae
from jobs.ml.sequences import batches, covering
from jobs.ml.tokens import TokenShards

LOGIT_BYTES = 2**27  # for one forward pass: fewer sequences at once where the vocabulary is large


def evaluate(
    model: PreTrainedModel, sae: Sae, reads: str | Sequence[str], shards: TokenShards, **options: Any
) -> dict[str, Any]:
    """The figures of `measure`, which takes the same, as a dictionary of plain numbers without their intervals; None
    is "not measured", and `not_measured` says why."""
    found = measure(model, sae, reads, shards, resamples=0, **options)
    kept = ("special_tokens_skipped", "not_measured")
    return {**found["counts"], **plain(found["figures"]), **{name: found[name] for name in kept}}


@torch.no_grad()
def measure(
    model: PreTrainedModel,
    sae: Sae,
    reads: str | Sequence[str],
    shards: TokenShards,
    *,
    writes: Sequence[str] = (),
    tokens: int = 2**17,
    ce_tokens: int = 2**15,
    skip_special: bool = True,
    model_batch: int = 8,
    resamples: int = RESAMPLES,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """`figures`: {value, low, high, n, formula} by name, with a 95 % interval by that many resamples of the documents;
    `drawn`: what was resampled; `counts` of tokens and latents; `density`: a histogram; `not_measured`: why not.

    reads, writes: the sites of its inputs and, where those are others, of its outputs.
    tokens, ce_tokens: about how many to read (whole sequences from the beginning of the split) for the
    reconstruction and for the predictions. Special tokens keep their own activation and are not counted.
    on_progress(sequences, of) may raise to stop. Raises ValueError where the split is empty.
    """
    place = find_place(model, sae, reads, writes)
    causal = is_causal(model.config)
    rows = covering(shards, tokens)
    ce_rows = covering(shards, ce_tokens) if causal else 0
    quality, rebuilt = Reconstruction(sae), Predictions(model, sae, place)
    documents = Boundaries(shards)
    for read in batches(shards, 0, rows, model_batch, skip_special):
        read = read.to(model.device)
        x, y = place.capture(model, read)
        quality.add(read.counted(x), read.counted(y), read.counted(documents.of(read)))
        on_progress(read.first + len(read.ids), rows + ce_rows)
    predict(rebuilt, shards, ce_rows, skip_special, model_batch, lambda done: on_progress(rows + done, rows + ce_rows))
    reason = {} if causal else {"ce": f"{type(model).__name__} does not predict the next token"}
    return {
        "figures": {**quality.figures(resamples, seed), **rebuilt.figures(resamples, seed)},
        "counts": {**quality.counts(), "ce_tokens": rebuilt.sums.n},
        "density": quality.density(),
        "drawn": quality.sums.about(documents.unit),
        "ce_drawn": rebuilt.sums.about(documents.unit),
        "special_tokens_skipped": skip_special,
        "not_measured": reason,
    }


@torch.no_grad()
def predictions(
    model: PreTrainedModel,
    sae: Sae,
    reads: str | Sequence[str],
    shards: TokenShards,
    *,
    writes: Sequence[str] = (),
    tokens: int,
    skip_special: bool = True,
    model_batch: int = 8,
) -> dict[str, Any]:
    """That part of evaluate() alone."""
    rebuilt = Predictions(model, sae, find_place(model, sae, reads, writes))
    predict(rebuilt, shards, covering(shards, tokens), skip_special, model_batch)
    return plain(rebuilt.figures(resamples=0)) | {"ce_tokens": rebuilt.sums.n}


def predict(
    rebuilt: Predictions,
    shards: TokenShards,
    rows: int,
    skip_special: bool,
    model_batch: int,
    told: Callable[[int], None] = lambda done: None,
) -> None:
    """The first `rows` sequences into the sums; told(sequences) after each pass."""
    model, documents = rebuilt.model, Boundaries(shards)
    for read in batches(shards, 0, rows, rows_with_logits(model, shards, model_batch), skip_special):
        read = read.to(model.device)
        rebuilt.add(read, documents.of(read))
        told(read.first + len(read.ids))


def plain(figures: dict[str, Any]) -> dict[str, float | None]:
    return {name: one["value"] for name, one in figures.items()}


def rows_with_logits(model: PreTrainedModel, shards: TokenShards, model_batch: int) -> int:
    """Sequences per forward pass whose logits are not too large."""
    logit_bytes = 4 * shards.context_length * model.config.get_text_config().vocab_size  # of one sequence
    return min(model_batch, max(1, LOGIT_BYTES // logit_bytes))
