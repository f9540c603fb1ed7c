"""What jobs have measured of language models, read from the jobs themselves: nothing is copied, and nothing that a
person typed in is among it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from django.db.models import Q, QuerySet

from jobs.models import Job, State
from mistudio.models import LanguageModel, Team
from mistudio.models.language_model import AUTO, Precision

PURPOSES = {  # kind of job → what the model was run for
    "measure_model": "forward",
    "cache_activations": "collect",
    "train_sae": "train",
    "scan_features": "scan",
    "evaluate_sae": "evaluate",
}
NEWEST = 2000  # jobs looked at
SETTLED = ("begun.json", "chunks/plan.json")  # where a training and a scan keep what was left open, below their folder
# Of no weight for or against a model: somebody else's disk, network, worker or input.
NOT_THE_MODEL = ("VALIDATION", "DISK_FULL", "NETWORK", "NOT_FOUND", "ACCESS_DENIED", "WORKER_LOST")


@dataclass(frozen=True)
class Observation:
    """One run of a model in one job; a load without a run has no rows."""

    job: int
    purpose: str
    dtype: str  # AUTO of a job that failed before its precision was settled
    device: str = ""  # not known of a job that failed
    error: str = ""  # its code
    load_seconds: float | None = None  # said once for each job
    weight_bytes: int | None = None
    peak_bytes: int | None = None
    rows: int | None = None  # sequences in a forward pass
    context_length: int | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    finite: bool = True


@dataclass(frozen=True)
class Spread:
    """Of n observations."""

    n: int
    middle: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    purpose: str
    device: str
    dtype: str
    rows: int | None
    context_length: int | None
    speed: Spread | None
    finite: bool


def observations(team: Team, model: LanguageModel | None = None) -> dict[int, list[Observation]]:
    """Key of the model → what was measured of it, the newest first. One query."""
    found: dict[int, list[Observation]] = {}
    for job in jobs_that_load(team, model)[:NEWEST]:
        key = str(job.params.get("model_folder", "")).rpartition("/")[2]
        if key.isdecimal() and not (job.state == State.FAILED and job.error_code in NOT_THE_MODEL):
            found.setdefault(int(key), []).extend(of_job(job))
    return found


def jobs_that_load(team: Team, model: LanguageModel | None) -> QuerySet[Job]:
    of_model = Q(params__model_folder__endswith=f"/{model.ROOM}/{model.pk}") if model else Q()
    ended = Job.objects.of_team(team).filter(kind__in=PURPOSES, state__in=(State.SUCCEEDED, State.FAILED))
    return ended.filter(of_model).only("kind", "state", "params", "result", "error_code").order_by("-pk")


def of_job(job: Job) -> list[Observation]:
    common: dict[str, Any] = {"job": job.pk, "purpose": PURPOSES[job.kind]}
    if job.state == State.FAILED:
        return [Observation(**common, dtype=tried_in(job), error=job.error_code)]
    if not (said := job.result.get("measured")):  # a job of before anything was measured
        return []
    loaded = {name: said.get(name) for name in ("load_seconds", "weight_bytes", "peak_bytes")}
    runs = [
        Observation(**common, dtype=said["dtype"], device=said["device"], rows=int(rows), **run)
        for rows, run in said.get("runs", {}).items()
    ]
    return [Observation(**common, dtype=said["dtype"], device=said["device"], **loaded), *runs]


def tried_in(job: Job) -> str:
    """The precision of a job that failed: as it was told, or as its run settled it and wrote down."""
    told = str(job.params.get("dtype") or Precision.FLOAT32)
    paths = (Path(job.params.get("folder", ""), name) for name in SETTLED) if told == AUTO else ()
    written = next((path for path in paths if path.is_file()), None)
    return str(json.loads(written.read_text())["dtype"]) if written else told


def spread(values: Iterable[float | None]) -> Spread | None:
    known = sorted(value for value in values if value is not None)
    return Spread(len(known), median(known), known[0], known[-1]) if known else None


def table(found: list[Observation]) -> list[Row]:
    """Speeds: alike runs together."""
    groups: dict[tuple[Any, ...], list[Observation]] = {}
    for seen in found:
        if seen.tokens_per_second is not None:
            key = (seen.purpose, seen.device, seen.dtype, seen.rows, seen.context_length)
            groups.setdefault(key, []).append(seen)
    rows = [
        Row(
            key[0],
            key[1],
            key[2],
            key[3],
            key[4],
            spread(seen.tokens_per_second for seen in group),
            all(seen.finite for seen in group),
        )
        for key, group in groups.items()
    ]
    return sorted(rows, key=lambda row: (row.purpose, row.device, *place(row.dtype), row.context_length, row.rows))


def place(dtype: str) -> tuple[int, str]:
    """From the most exact precision to the smallest."""
    return (Precision.values.index(dtype) if dtype in Precision.values else len(Precision), dtype)


def loads(found: list[Observation]) -> list[dict[str, Any]]:
    """Of each precision and device: seconds to load, bytes of the weights, peak of the job."""
    groups: dict[tuple[str, str], list[Observation]] = {}
    for seen in found:
        if seen.rows is None and not seen.error:
            groups.setdefault((seen.dtype, seen.device), []).append(seen)
    return [
        {
            "dtype": dtype,
            "device": device,
            "n": len(group),
            "seconds": spread(seen.load_seconds for seen in group),
            "weights": spread(seen.weight_bytes for seen in group),
            "peak": spread(seen.peak_bytes for seen in group),
        }
        for (dtype, device), group in sorted(groups.items(), key=lambda item: place(item[0][0]))
    ]


def failures(found: list[Observation]) -> list[Observation]:
    return [seen for seen in found if seen.error]
