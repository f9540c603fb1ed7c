"""What would only go wrong when a job runs, found at start."""

import ast
import dataclasses
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from jobs.kinds import KINDS

QUEUES = ("gpu", "cpu")
PIECES: dict[str, type | tuple[type, ...]] = {"LABEL": str, "QUEUE": str, "RESUMABLE": bool, "STAGES": dict}
HEAVY = {"torch", "transformers", "datasets", "bitsandbytes", "accelerate"}


@register()
def check_kinds(**kwargs: Any) -> list[CheckMessage]:
    return [Error(f"Job kind “{name}”: {wrong}.", id="jobs.E001") for name in KINDS for wrong in wrong_with(name)]


def wrong_with(name: str) -> Iterator[str]:
    spec = find_spec(KINDS[name])
    if spec is None or spec.origin is None:
        yield f"there is no module {KINDS[name]}"
        return
    # Read first, import then: a web process must not pay for torch because a kind imports it at its top.
    heavy = imported_at_top(Path(spec.origin)) & HEAVY
    if heavy:
        yield f"imports {', '.join(sorted(heavy))} at the top; import it inside run()"
        return
    yield from missing_pieces(importlib.import_module(KINDS[name]))


def find_spec(path: str) -> Any:
    try:
        return importlib.util.find_spec(path)
    except ModuleNotFoundError:
        return None


def imported_at_top(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def missing_pieces(kind: ModuleType) -> Iterator[str]:
    for piece, kind_of in PIECES.items():
        if not isinstance(getattr(kind, piece, None), kind_of):
            yield f"{piece} is missing or no {getattr(kind_of, '__name__', kind_of)}"
    if getattr(kind, "QUEUE", "") not in QUEUES:
        yield f"QUEUE is none of {', '.join(QUEUES)}"
    params = getattr(kind, "Params", None)
    if not (dataclasses.is_dataclass(params) and getattr(params, "__dataclass_params__").frozen):  # noqa: B009
        yield "Params is no frozen dataclass"
    if not callable(getattr(kind, "run", None)):
        yield "run() is missing"


@register()
def check_upkeep(**kwargs: Any) -> list[CheckMessage]:
    from jobs.upkeep.task import Task, find  # late: tasks import models

    found: list[CheckMessage] = []
    for name in settings.UPKEEP:
        try:
            wrong = "" if isinstance(find(name), Task) else "it is no jobs.upkeep.task.Task"
        except ImportError as error:
            wrong = str(error)
        if wrong:
            found.append(Error(f"UPKEEP[{name!r}]: {wrong}.", id="jobs.E004"))
    return found


@register()
def check_queues(**kwargs: Any) -> list[CheckMessage]:
    """django-q2 must never hand out a message again while its job runs."""
    config = settings.Q_CLUSTER
    clusters = config.get("ALT_CLUSTERS")
    if not isinstance(clusters, dict) or not set(QUEUES) <= set(clusters):
        return [Error(f"Q_CLUSTER['ALT_CLUSTERS'] must name {' and '.join(QUEUES)}.", id="jobs.E002")]
    return [
        Error(f"Q_CLUSTER {name}: retry must be larger than timeout, and both set.", id="jobs.E003")
        for name, cluster in {"default": config, **clusters}.items()
        if not 0 < (cluster.get("timeout") or 0) < (cluster.get("retry") or 0)
    ]
