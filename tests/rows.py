"""Rows as finished jobs leave them, for tests that are about pages and forms and not about the jobs."""

from typing import Any

from django.utils import timezone

from mistudio.models import (
    ActivationCache,
    Dataset,
    Evaluation,
    Export,
    Feature,
    LanguageModel,
    Sae,
    Scan,
    Team,
    Tokenization,
    Training,
)

SITES = [
    {"name": f"blocks.{n}.{hook}", "width": 16}
    for n in range(2)
    for hook in ("hook_resid_pre", "hook_z", "hook_resid_post")
]

QUANTILES = {"p1": 2.0, "p5": 2.5, "p25": 3.0, "p50": 4.0, "p75": 5.0, "p95": 6.0, "p99": 7.0}
STATISTICS = {
    "tokens": 9_700,
    "width": 16,
    "norm": {"mean": 4.0, "std": 1.0, "min": 1.0, "max": 90.0, **QUANTILES},
    "histogram": {"counts": [9_000, 600, 100], "edges": [0.0, 0.7, 1.4, 2.1]},
    "mean_norm": 2.0,
    "variance": 13.0,
    "std": {"min": 0.5, "median": 0.9, "max": 2.0},
    "dimensions": [{"index": 3, "mean": 1.5, "std": 0.5}],
    "zeros": 0.0,
    "near_zeros": 0.01,
    "sinks": 3,
    "error": 1e-6,
    "outliers": [{"norm": 90.0, "position": 33}, {"norm": 80.0, "position": 1}],
}


def language_model(team: Team, name: str = "tiny", **fields: Any) -> LanguageModel:
    known = {
        "source": "/models/tiny",
        "model_type": "llama",
        "causal": True,
        "n_layers": 2,
        "d_model": 16,
        "n_heads": 2,
        "vocab_size": 64,
        "context_length": 128,
        "n_parameters": 10_000,
        "sites": SITES,
        "ready_at": timezone.now(),
    }
    return LanguageModel.objects.create(team=team, name=name, **{**known, **fields})


def dataset(team: Team, name: str = "texts", **fields: Any) -> Dataset:
    known = {
        "source": "/data/texts.jsonl",
        "n_documents": 100,
        "n_characters": 5000,
        "ready_at": timezone.now(),
    }
    return Dataset.objects.create(team=team, name=name, **{**known, **fields})


def tokenization(team: Team, name: str = "tokens", **fields: Any) -> Tokenization:
    known: dict[str, Any] = {
        "context_length": 32,
        "n_tokens": 10_000,
        "n_held_out_tokens": 1000,
        "n_sequences": 313,
        "ready_at": timezone.now(),
    }
    parts = {
        "dataset": fields.pop("dataset", None) or dataset(team, f"{name}-texts"),
        "language_model": fields.pop("language_model", None) or language_model(team, f"{name}-model"),
    }
    return Tokenization.objects.create(team=team, name=name, **parts, **{**known, **fields})


def activation_cache(team: Team, name: str = "cache", **fields: Any) -> ActivationCache:
    tokens = fields.pop("tokenization", None) or tokenization(team, f"{name}-tokens")
    known = {
        "sites": ["blocks.1.hook_resid_pre"],
        "n_tokens": 10_000,
        "n_stored": 9_700,
        "size_bytes": 310_400,
        "tokens_per_second": 5000.0,
        "dtype": "auto",
        "result": {
            "dtype": "float32",
            "model_batch": 16,
            "shards": 1,
            "sequences": 313,
            "statistics": {"blocks.1.hook_resid_pre": STATISTICS},
        },
        "ready_at": timezone.now(),
        "used_at": timezone.now(),
    }
    return ActivationCache.objects.create(
        team=team, name=name, tokenization=tokens, language_model=tokens.language_model, **{**known, **fields}
    )


def training(team: Team, name: str = "run", **fields: Any) -> Training:
    tokens = fields.pop("tokenization", None) or tokenization(team, f"{name}-tokens")
    caches = fields.pop("caches", ())
    known = {
        "site": "blocks.1.hook_resid_pre",
        "width": "32",
        "options": {"k": "4"},
        "n_tokens": 8192,
        "batch_tokens": 256,
    }
    row = Training.objects.create(
        team=team, name=name, tokenization=tokens, language_model=tokens.language_model, **{**known, **fields}
    )
    row.caches.add(*caches)
    return row


def sae(team: Team, name: str = "sae", features: int = 0, **fields: Any) -> Sae:
    run = fields.pop("training", None) or training(team, f"{name}-run", ready_at=timezone.now())
    known = {
        "reads": [run.site],
        "architecture": "topk",
        "d_in": 16,
        "width": 32,
        "options": {"k": 4},
        "fvu": 0.25,
        "l0": 4.0,
    }
    row = Sae.objects.create(
        team=team,
        name=name,
        training=run,
        language_model=run.language_model,
        ready_at=timezone.now(),
        **{**known, **fields},
    )
    Feature.objects.bulk_create(feature(row, index) for index in range(features))
    return row


def feature(row: Sae, index: int) -> Feature:
    """Every tenth is dead, every seventh dense; the larger its number, the stronger."""
    fired = 0 if index % 10 == 0 else 300 if index % 7 == 0 else index
    return Feature(
        sae=row,
        index=index,
        n_fired=fired,
        density=fired / 1000,
        max_activation=index / 2,
        mean_activation=index / 4,
        top_tokens=f"token{index} the",
    )


def scan(team: Team, name: str = "scan", **fields: Any) -> Scan:
    row = fields.pop("sae", None) or sae(team, f"{name}-sae")
    known = {
        "n_tokens": 1000,
        "scanned_tokens": 1000,
        "n_alive": 9,
        "n_dead": 1,
        "n_dense": 1,
        "ready_at": timezone.now(),
    }
    made = Scan.objects.create(
        team=team, name=name, sae=row, tokenization=row.training.tokenization, **{**known, **fields}
    )
    if made.ready:
        row.scan = made
        row.save()
    return made


def figure(value: float, width: float = 0.01, n: int = 1000, formula: str = "l0/1") -> dict[str, Any]:
    return {"value": value, "low": value - width, "high": value + width, "n": n, "formula": formula}


def evaluation(team: Team, name: str = "evaluation", **fields: Any) -> Evaluation:
    row = fields.pop("sae", None) or sae(team, f"{name}-sae")
    tokens = fields.pop("tokenization", None) or row.training.tokenization
    result = {
        "figures": {
            "explained_variance": figure(0.913, 0.008, formula="explained_variance/2"),
            "l0": figure(4.2, 0.1),
            "ce_recovered": figure(0.97, 0.01, n=250, formula="ce_recovered/1"),
            "sparse_probing_accuracy_1": figure(0.8, 0.05, n=120, formula="sparse_probing_accuracy/1"),
            "nearest_decoder_cosine": {"value": 0.3, "low": None, "high": None, "n": 32, "formula": "d/1"},
        },
        "counts": {"tokens": 1000, "ce_tokens": 250, "dead": 2, "dense": 1, "alive": 30},
        "density": {"counts": [10, 20], "edges": [-2.0, -1.0, 0.0]},
        "drawn": {"unit": "documents", "n": 80, "in_each": 1},
        "classes": [{"label": "<b>news</b>", "latents": [1, 2], "accuracy_1": 0.8, "n": 60}],
        "texts": {"train": 480, "test": 120},
        "not_measured": {"absorption": "it was not asked for"},
        "special_tokens_skipped": True,
        "dtype": "float32",
        "model_batch": 16,
        "seconds": 12.5,
    }
    known = {"n_tokens": 1000, "evaluated_tokens": 1000, "result": result, "ready_at": timezone.now()}
    return Evaluation.objects.create(team=team, name=name, sae=row, tokenization=tokens, **{**known, **fields})


def export(team: Team, name: str = "export", **fields: Any) -> Export:
    row = fields.pop("sae", None) or sae(team, f"{name}-sae")
    certificate = {
        "format": "saelens", "by_peer": True, "package": "sae-lens", "version": "6.54.12", "vectors": 256,
        "at_threshold": 0, "active": 4.0, "codes": 1e-8, "x_hat": 1e-8, "limit": 1e-5, "holds": True,
    }  # fmt: skip
    result = {"bytes": 1000, "inner": "sae", "certificate": certificate}
    known = {"archive": "sae.zip", "result": result, "ready_at": timezone.now()}
    return Export.objects.create(team=team, name=name, sae=row, **{**known, **fields})
