"""A training from files to files: the run that a job drives, and what it leaves behind."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jobs.ml import store
from jobs.ml.activations import ActivationStream
from jobs.ml.cached_activations import CachedActivations
from jobs.ml.calibration import deepest, load_calibrated
from jobs.ml.config import AUTO, UNSETTLED_ROWS
from jobs.ml.determinism import selection_of, set_up
from jobs.ml.evaluate import evaluate, predictions
from jobs.ml.language_model import is_causal, load_model, precision_of
from jobs.ml.parallel import ALONE, Ranks
from jobs.ml.saelens import save_sae
from jobs.ml.tokens import TokenShards
from jobs.ml.train import Member, Run, Trainer

Activations = ActivationStream | CachedActivations


def source_of(stream: Activations) -> str:
    """Where the activations come from, in words."""
    if isinstance(stream, CachedActivations):
        return f"activations are read from {', '.join(str(reader.folder) for reader in stream.readers)}"
    return f"forward passes of {stream.model_batch} sequences in {precision_of(stream.model)}"


def begin(
    members: Sequence[Member],
    *,
    model_folder: str,
    tokens_folder: str,
    seed: int,
    buffer_tokens: int,
    model_batch: int | None,
    skip_special: bool,
    dtype: str,
    selection: str,
    begun: Path,
    caches: Sequence[str] = (),
    cache_weights: Sequence[float] = (),
    ranks: Ranks = ALONE,
) -> Run[Activations]:
    """A run before its first step, on the first GPU where there is one. It reads the caches where some are given, else
    runs the model. seed: of the order of the activations. ranks: the processes that share it, of which the first must
    have left this function before the others enter it.

    What is left open, dtype and selection `auto` and model_batch None, is decided once: the file `begun` keeps it for
    later attempts, since all leave their mark in the last bits of the weights.
    """
    device = set_up(seed)
    shards = TokenShards(tokens_folder, "train")
    sites = list(dict.fromkeys(site for member in members for site in (*member.reads, *member.writes)))
    batch_tokens = members[0].config.batch_tokens
    reading: dict[str, Any] = {"batch_tokens": batch_tokens, "seed": seed, "device": device}
    earlier = store.read_json_if_there(begun)
    if earlier.get("device") != device:
        earlier = {}
    settled: dict[str, Any] = {"device": device, "selection": selection_of(earlier.get("selection", selection), device)}
    members = [replace(one, config=replace(one.config, selection=settled["selection"])) for one in members]
    if caches:
        rows = model_batch or UNSETTLED_ROWS
        load = partial(load_model, model_folder, device)
        stream: Activations = CachedActivations(
            caches, sites, shards, load, weights=cache_weights, model_batch=rows, **reading
        )
    else:
        if dtype in (AUTO, earlier.get("dtype")):
            dtype, model_batch = earlier.get("dtype", dtype), model_batch or earlier.get("model_batch")
        model, dtype, rows = load_calibrated(
            model_folder, site=deepest(sites), context_length=shards.context_length, device=device, dtype=dtype,
            rows=model_batch,
        )  # fmt: skip
        settled |= {"dtype": dtype, "model_batch": rows}
        stream = ActivationStream(
            model, sites, shards, buffer_tokens=buffer_tokens, skip_special=skip_special, model_batch=rows, ranks=ranks,
            **reading,
        )  # fmt: skip
    if settled != earlier:
        store.write_json(begun, settled)
    return Run[Activations](members, stream, device, ranks=ranks)


def glance(run: Run[Activations], tokens: int) -> list[dict[str, float]]:
    """What each SAE keeps of the predictions now, on few held-out tokens; nothing where that cannot be measured without
    loading the model."""
    run.settle()
    stream = run.stream
    held_out = TokenShards(stream.shards.folder, "held_out")
    if isinstance(stream, CachedActivations) or not held_out.n_sequences or not is_causal(stream.model.config):
        return [{} for _ in run.trainers]
    found: list[dict[str, float]] = []
    for trainer in run.trainers:
        if trainer.diverged is not None:
            found.append({})
            continue
        member, sae = trainer.member, trainer.export()
        seen = predictions(
            stream.model, sae, member.reads, held_out, writes=member.writes, tokens=tokens,
            skip_special=stream.skip_special, model_batch=stream.model_batch,
        )  # fmt: skip
        found.append({} if seen["ce_recovered"] is None else {"ce_recovered": seen["ce_recovered"]})
    return found


def finish(
    run: Run[Activations],
    folders: Sequence[Path | str],
    *,
    tokens: int,
    on_progress: Callable[[int, int], None],
    **metadata: Any,
) -> dict[str, Any]:
    """Exports the folded SAEs, measures each on about `tokens` held-out tokens, and returns the figures of the run,
    those of its SAEs under `saes`: of one that diverged, that it did and nothing else.

    Each other SAE's folder gets SAELens' two files and a manifest. metadata: see saelens.save_sae.
    """
    stream = run.stream
    shared = {
        "steps": run.step,
        "tokens": run.tokens,
        "epochs": run.tokens / stream.tokens_per_epoch,
        "seconds": round(run.seconds, 1),
        "stopped_early": run.stopped,
        "dtype": stream.dtype,  # of the language model
        "model_batch": stream.model_batch,
        "processes": run.ranks.size,
    }
    run.check()
    learnt = [trainer for trainer in run.trainers if trainer.diverged is None]
    results: list[dict[str, Any]] = []
    for trainer, folder in zip(run.trainers, folders, strict=True):
        if trainer.diverged is not None:
            why = trainer.divergence()
            results.append({"diverged": trainer.diverged, "message": str(why), "hint": why.hint})
            continue
        told = partial(tell_share, on_progress, learnt.index(trainer), len(learnt))
        results.append(save(trainer, stream, Path(folder), tokens, told, shared, metadata))
    return {**shared, "saes": results}


def tell_share(on_progress: Callable[[int, int], None], n: int, of: int, done: int, total: int) -> None:
    on_progress(n * total + done, of * total)


def save(
    trainer: Trainer,
    stream: Activations,
    folder: Path,
    tokens: int,
    on_progress: Callable[[int, int], None],
    shared: dict[str, Any],
    metadata: dict[str, Any],
) -> dict[str, Any]:
    """One SAE of the run."""
    member, sae = trainer.member, trainer.export()
    held_out = TokenShards(stream.shards.folder, "held_out")
    metrics: dict[str, Any] = {"not_measured": {"all": "no sequences are held out"}}
    if held_out.n_sequences:
        metrics = evaluate(
            stream.model, sae, member.reads, held_out, writes=member.writes, tokens=tokens, ce_tokens=tokens // 4,
            skip_special=stream.skip_special, model_batch=stream.model_batch, on_progress=on_progress,
        )  # fmt: skip
    result = {
        "d_in": sae.d_in,
        "width": sae.width,
        **{name: metrics.get(name) for name in ("fvu", "l0", "ce_recovered", "dead", "dense")},
        "evaluated_tokens": metrics.get("tokens"),
        "metrics": metrics,
    }
    save_sae(sae, folder, reads=member.reads, writes=member.writes, **provenance(stream), **metadata)
    store.write_manifest(
        folder,
        ["cfg.json", "sae_weights.safetensors"],
        kind="sae",
        config=asdict(member.config),
        sites={name: asdict(stream.sites[name]) for name in (*member.reads, *member.writes)},
        input_scales=trainer.scales,  # folded in already: kept so that the run can be retraced
        threads=torch.get_num_threads(),
        tokenization=store.fingerprint(store.read_manifest(stream.shards.folder)),
        activations=stream.identity(),
        result={**shared, **result},
    )
    return result


def provenance(stream: Activations) -> dict[str, Any]:
    """How the tokens were read, in SAELens's words: a peer that reads them otherwise measures other figures."""
    return {
        "context_size": stream.shards.context_length,
        "prepend_bos": stream.shards.add_bos,
        "exclude_special_tokens": stream.skip_special,
    }
