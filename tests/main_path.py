"""Walks the main path inside one process: forms, kinds, engine and ingest as they are, without child processes."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from jobs.child import perform
from jobs.context import Context
from jobs.kinds import load_kind
from jobs.models import Job, Metric, State
from jobs.outcome import Outcome
from mistudio.forms.dataset import DatasetForm
from mistudio.forms.language_model import LanguageModelForm
from mistudio.forms.scan import ScanForm
from mistudio.forms.tokenization import TokenizationForm
from mistudio.forms.training import TrainingForm
from mistudio.models import Artifact, Sae, Scan, User


def launch(form_class: Any, person: User, **data: Any) -> Artifact:
    form = form_class(data, team=person.team, owner=person)
    made = form.launch()
    assert made is not None, form.errors.as_text()
    return work(made)


def outcome(job: Job) -> Outcome:
    """Do the job here and now."""
    assert job.move(State.RUNNING, attempt=1, heartbeat_at=timezone.now())
    context = Context(job.pk, 1, load_kind(job.kind).STAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.ml.calibration.SECONDS", 0.1)  # of trials, how many sequences are best in a pass
        ending = perform(job, context)
    Metric.objects.bulk_create(Metric(job=job, step=n, values=said) for n, said in context.take_metrics().items())
    return ending


def work(artifact: Any) -> Any:
    """Do the artifact's job here and now."""
    ending = outcome(artifact.job)
    assert ending.how == "succeeded", f"{ending.error}\n{ending.detail}"
    assert artifact.job.move(State.SUCCEEDED, result=ending.result)
    artifact.refresh_from_db()
    assert artifact.ready
    return artifact


def write_texts(path: Path, documents: list[str]) -> Path:
    path.write_text("\n".join(json.dumps({"text": text, "n": n}) for n, text in enumerate(documents)))
    return path


def walk(person: User, model_folder: Path, texts: Path, **training: Any) -> tuple[Sae, Scan]:
    model = launch(LanguageModelForm, person, source=str(model_folder))
    data = launch(DatasetForm, person, source=str(texts), text_column="text")
    tokens = launch(TokenizationForm, person, dataset=data.pk, language_model=model.pk, context_length=32, held_out=0.3)
    settings = {"site": "blocks.1.hook_resid_pre", "width": 64, "k": 4, "n_tokens": 8192, "batch_tokens": 512}
    run = launch(TrainingForm, person, tokenization=tokens.pk, **{**settings, **training})
    sae = Sae.objects.get(training=run)
    scan = launch(ScanForm, person, sae=sae.pk, n_tokens=1500)
    return sae, scan
