"""A finished job's files → rows. Each may run twice: what a crash interrupted is done again, to the same end."""

import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from django.utils import timezone

from jobs.ml.document_sample import sample
from jobs.ml.evidence import Evidence
from jobs.ml.tokens import TokenShards
from jobs.models import Job
from mistudio.evidence import peak_tokens
from mistudio.models import (
    ActivationCache,
    Dataset,
    Evaluation,
    Export,
    Feature,
    LanguageModel,
    Sae,
    Scan,
    Tokenization,
    Training,
)
from mistudio.models.artifact import artifact_of, free_name
from mistudio.models.plan import differences
from mistudio.models.upload import used_up
from mistudio.vocabulary import read_vocabulary

BATCH = 2000
MEASURED = {"n_fired": 0, "density": 0.0, "max_activation": 0.0, "mean_activation": 0.0, "top_tokens": ""}


def language_model(job: Job, result: dict[str, Any]) -> None:
    row = artifact_of(job.subject)
    if not isinstance(row, LanguageModel):
        return
    described = result["architecture"]
    row.mark_ready(
        commit=result.get("commit") or "",
        files=result["files"],
        licence=result.get("licence") or "",
        **{
            name: described[name]
            for name in (
                "model_type",
                "class_name",
                "causal",
                "n_layers",
                "d_model",
                "n_heads",
                "vocab_size",
                "context_length",
                "n_parameters",
                "dtype",
                "sites",
                "structure",
            )
        },
    )


def verification(job: Job, result: dict[str, Any]) -> None:
    """Of a language model's files; after they were fetched again, likewise."""
    row = artifact_of(job.subject)
    if not isinstance(row, LanguageModel):
        return
    row.damaged, row.verified_at = result["damaged"], timezone.now()
    row.structure = result.get("structure") or row.structure
    row.sites = result.get("sites") or row.sites
    row.save(update_fields=["damaged", "verified_at", "structure", "sites"])


def dataset(job: Job, result: dict[str, Any]) -> None:
    row = artifact_of(job.subject)
    if not isinstance(row, Dataset):
        return
    statistics = result["statistics"]
    used_up(row, 0 if result.get("conversations") else len(result["columns"]))
    sample(row.folder)
    row.mark_ready(
        text_column=result["text_column"],  # what was left open is settled now, so that it can be made again
        revision=result.get("commit") or row.revision,
        columns=result["columns"],
        samples=result["samples"],
        conversations=result.get("conversations", False),
        statistics=statistics,
        n_documents=statistics["documents"],
        n_characters=statistics["characters"],
    )
    for part, taken in zip(row.parts.all(), result.get("parts", []), strict=True):
        part.n_documents, part.n_bytes = taken["documents"], taken["bytes"]
        part.n_duplicates, part.ended = taken["duplicates"], taken["ended"]
        part.save()


def tokenization(job: Job, result: dict[str, Any]) -> None:
    row = artifact_of(job.subject)
    if not isinstance(row, Tokenization):
        return
    row.mark_ready(
        statistics=result,
        n_tokens=result["train"]["tokens"],
        n_held_out_tokens=result["held_out"]["tokens"],
        n_sequences=result["train"]["sequences"],
    )


def activation_cache(job: Job, result: dict[str, Any]) -> None:
    row = artifact_of(job.subject)
    if not isinstance(row, ActivationCache):
        return
    speed = result.get("tokens_per_second") or row.tokens_per_second
    row.mark_ready(result=result, n_stored=result["tokens"], tokens_per_second=speed)


def training(job: Job, result: dict[str, Any]) -> None:
    """A training that ended, early or not, leaves its SAEs. One that diverged is none: the training says at which step,
    under `diverged` by its line on the page."""
    row = artifact_of(job.subject)
    if not isinstance(row, Training):
        return
    shared = {name: value for name, value in result.items() if name != "saes"}
    diverged = {f"line_{n}": one["diverged"] for n, one in enumerate(result["saes"], 1) if "diverged" in one}
    row.mark_ready(result={**shared, "diverged": diverged})
    for cache in row.caches.all():
        cache.touch()
    members = job.params["saes"]  # as they were begun: presets may have changed since
    told = differences(members)
    for number, (member, measured) in enumerate(zip(members, result["saes"], strict=True)):
        if "diverged" in measured:
            continue
        name = f"{row.name} {told[number]}".strip().replace(" · ", "-").replace(" + ", "+").replace(" ", "-")
        sae, _ = Sae.objects.get_or_create(
            training=row,
            number=number,
            defaults={
                "team": row.team,
                "owner": row.owner,
                "name": free_name(Sae.objects.of_team(row.team), name),
                "language_model": row.language_model,
                "d_in": measured["d_in"],
                "job": job,
                **{field: member[field] for field in ("reads", "writes", "architecture", "width", "options")},
            },
        )
        sae.mark_ready(
            metrics=measured.get("metrics", {}),
            **{name: measured.get(name) for name in ("fvu", "l0", "ce_recovered", "evaluated_tokens")},
        )


def imported_sae(job: Job, result: dict[str, Any]) -> None:
    row = artifact_of(job.subject)
    if not isinstance(row, Sae) or not row.foreign:
        return
    shutil.rmtree(row.upload_folder, ignore_errors=True)
    row.mark_ready(
        options={} if result["k"] is None else {"k": result["k"]},
        imported={**row.imported, **result},
        licence=row.licence or result["licence"],
        **{name: result[name] for name in ("architecture", "d_in", "width", "reads", "writes", "commit", "path")},
    )


def export(job: Job, result: dict[str, Any]) -> None:
    row = artifact_of(job.subject)
    if isinstance(row, Export):
        row.mark_ready(archive=result["archive"], result=result)


def scan(job: Job, result: dict[str, Any]) -> None:
    row = artifact_of(job.subject)
    if not isinstance(row, Scan):
        return
    measure(row.sae, row)
    row.mark_ready(
        result=result,
        scanned_tokens=result["tokens"],
        n_alive=result["alive"],
        n_dead=result["dead"],
        n_dense=result["dense"],
    )


def evaluation(job: Job, result: dict[str, Any]) -> None:
    row = artifact_of(job.subject)
    if not isinstance(row, Evaluation):
        return
    row.mark_ready(result=result, evaluated_tokens=result["counts"]["tokens"])


def measure(sae: Sae, scan: Scan | None) -> None:
    """Give the features the figures of this scan, or none. Labels and notes, which people wrote, are never touched.

    One transaction a batch, so that nobody waits long for the database; meanwhile the SAE counts as not scanned."""
    Sae.objects.filter(pk=sae.pk).update(scan=None)
    if scan is None:
        sae.features.update(**MEASURED)
        return
    for batch in batches(figures(scan), BATCH):
        Feature.objects.bulk_create(
            batch, update_conflicts=True, unique_fields=["sae", "index"], update_fields=list(MEASURED)
        )
    Sae.objects.filter(pk=sae.pk).update(scan=scan)


def figures(row: Scan) -> Iterator[Feature]:
    evidence = Evidence(row.folder)
    shards = TokenShards(row.tokenization.folder, evidence.split)
    pieces = read_vocabulary(row.tokenization.language_model.folder)
    fired, largest, mean = (np.asarray(a).tolist() for a in (evidence.n_fired, evidence.max, evidence.mean))
    for index, n in enumerate(fired):
        tokens = peak_tokens(evidence, shards, index) if n else []
        yield Feature(
            sae_id=row.sae_id,
            index=index,
            n_fired=n,
            density=n / max(1, evidence.n_tokens),
            max_activation=largest[index],
            mean_activation=mean[index],
            top_tokens=words([pieces[token] for token in tokens if token < len(pieces)]),
        )


def words(pieces: Iterable[str]) -> str:
    """Distinct pieces, strongest first, in 300 characters."""
    text = " ".join(dict.fromkeys(piece.strip() for piece in pieces if piece.strip()))
    return text.replace("\0", "␀")[:300]


def batches(rows: Iterable[Feature], size: int) -> Iterator[list[Feature]]:
    batch: list[Feature] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
