"""A training from files to files: the run that a job drives, and what it leaves behind."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jobs.ml import store
from jobs.ml.activations import ActivationStream
from jobs.ml.cached_activations import CachedActivations
from jobs.ml.calibration import load_calibrated
from jobs.ml.config import AUTO, UNSETTLED_ROWS, TrainConfig
from jobs.ml.determinism import set_up
from jobs.ml.evaluate import evaluate
from jobs.ml.language_model import load_model, precision_of
from jobs.ml.saelens import save_sae
from jobs.ml.tokens import TokenShards
from jobs.ml.train import Trainer


def source_of(stream: ActivationStream | CachedActivations) -> str:
    """Where the activations come from, in words."""
    if isinstance(stream, CachedActivations):
        return f"activations are read from {', '.join(str(reader.folder) for reader in stream.readers)}"
    return f"forward passes of {stream.model_batch} sequences in {precision_of(stream.model)}"


def begin(
    config: TrainConfig,
    *,
    model_folder: str,
    tokens_folder: str,
    site: str,
    buffer_tokens: int,
    model_batch: int | None,
    skip_special: bool,
    dtype: str,
    begun: Path,
    caches: Sequence[str] = (),
    cache_weights: Sequence[float] = (),
) -> Trainer:
    """A trainer before its first step, on the first GPU where there is one. It reads the caches where some are given,
    else runs the model.

    What is left open, dtype `auto` and model_batch None, is decided once: the file `begun` keeps it for later attempts,
    since both leave their mark in the last bits of the weights.
    """
    device = set_up(config.seed)
    shards = TokenShards(tokens_folder, "train")
    place: dict[str, Any] = {"site": site, "context_length": shards.context_length, "device": device}
    reading: dict[str, Any] = {"batch_tokens": config.batch_tokens, "seed": config.seed, "device": device}
    if caches:
        source = CachedActivations(
            caches,
            site,
            shards,
            partial(load_model, model_folder, device),
            weights=cache_weights,
            model_batch=model_batch or UNSETTLED_ROWS,
            **reading,
        )
        return Trainer(config, source, device)
    earlier = store.read_json(begun) if begun.is_file() else {}
    if earlier.get("device") == device and dtype in (AUTO, earlier["dtype"]):
        dtype, model_batch = earlier["dtype"], model_batch or earlier["model_batch"]
    model, dtype, rows = load_calibrated(model_folder, **place, dtype=dtype, rows=model_batch)
    if (now := {"device": device, "dtype": dtype, "model_batch": rows}) != earlier:
        store.write_json(begun, now)
    stream = ActivationStream(
        model, site, shards, buffer_tokens=buffer_tokens, skip_special=skip_special, model_batch=rows, **reading
    )
    return Trainer(config, stream, device)


def finish(
    trainer: Trainer, folder: Path | str, *, tokens: int, on_progress: Callable[[int, int], None], **metadata: Any
) -> dict[str, Any]:
    """Exports the folded SAE, measures it on about `tokens` held-out tokens, and returns the figures of the run.

    The folder gets SAELens' two files and a manifest. metadata: see saelens.save_sae.
    """
    folder, stream, sae = Path(folder), trainer.stream, trainer.export()
    held_out = TokenShards(stream.shards.folder, "held_out")
    reading: dict[str, Any] = {
        "skip_special": stream.skip_special,
        "model_batch": stream.model_batch,
        "on_progress": on_progress,
    }
    metrics: dict[str, Any] = {"not_measured": {"all": "no sequences are held out"}}
    if held_out.n_sequences:
        metrics = evaluate(
            stream.model, sae, stream.site.name, held_out, tokens=tokens, ce_tokens=tokens // 4, **reading
        )
    result = {
        "d_in": sae.d_in,
        "width": sae.width,
        "steps": trainer.step,
        "tokens": trainer.tokens,
        "epochs": trainer.tokens / stream.tokens_per_epoch,
        "seconds": round(trainer.seconds, 1),
        "stopped_early": trainer.stopped,
        "dtype": precision_of(stream.model),  # of the language model
        "model_batch": stream.model_batch,
        **{name: metrics.get(name) for name in ("fvu", "l0", "ce_recovered", "dead", "dense")},
        "evaluated_tokens": metrics.get("tokens"),
        "metrics": metrics,
    }
    save_sae(sae, folder, site=stream.site.name, **provenance(stream), **metadata)
    store.write_manifest(
        folder,
        ["cfg.json", "sae_weights.safetensors"],
        kind="sae",
        config=asdict(trainer.config),
        site=asdict(stream.site),
        input_scale=trainer.scale,  # folded in already: kept so that the run can be retraced
        threads=torch.get_num_threads(),
        tokenization=store.fingerprint(store.read_manifest(stream.shards.folder)),
        activations=stream.identity(),
        result=result,
    )
    return result


def provenance(stream: ActivationStream | CachedActivations) -> dict[str, Any]:
    """How the tokens were read, in SAELens's words: a peer that reads them otherwise measures other figures."""
    return {
        "context_size": stream.shards.context_length,
        "prepend_bos": stream.shards.add_bos,
        "exclude_special_tokens": stream.skip_special,
    }
