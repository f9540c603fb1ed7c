"""The kinds of jobs. A new kind is one file beside this one and one line below."""

import dataclasses
import importlib
from types import ModuleType
from typing import Any

from jobs.errors import InvalidInput

KINDS: dict[str, str] = {
    "add_model": "jobs.kinds.add_model",
    "verify_model": "jobs.kinds.verify_model",
    "restore_model": "jobs.kinds.restore_model",
    "measure_model": "jobs.kinds.measure_model",
    "add_dataset": "jobs.kinds.add_dataset",
    "mix_datasets": "jobs.kinds.mix_datasets",
    "tokenize": "jobs.kinds.tokenize",
    "cache_activations": "jobs.kinds.cache_activations",
    "train_sae": "jobs.kinds.train_sae",
    "scan_features": "jobs.kinds.scan_features",
    "evaluate_sae": "jobs.kinds.evaluate_sae",
    "import_sae": "jobs.kinds.import_sae",
    "export_sae": "jobs.kinds.export_sae",
    "upkeep": "jobs.kinds.upkeep",
    "sleepy": "jobs.kinds.sleepy",
}


def load_kind(name: str) -> ModuleType:
    """Raises InvalidInput for a kind that does not exist."""
    if name not in KINDS:
        raise InvalidInput(f"There is no kind of job “{name}”.", hint=f"Kinds: {', '.join(sorted(KINDS))}.")
    return importlib.import_module(KINDS[name])


def make_params(kind: ModuleType, params: dict[str, Any]) -> Any:
    """The kind's own Params, validated. Raises InvalidInput."""
    known = {field.name for field in dataclasses.fields(kind.Params)}
    if unknown := sorted(set(params) - known):
        raise InvalidInput(f"Unknown parameter {', '.join(unknown)}.", hint=f"Known: {', '.join(sorted(known))}.")
    try:
        return kind.Params(**params)
    except TypeError as error:
        raise InvalidInput(f"Parameters of {kind.LABEL.lower()}: {error}.") from error
