"""Kill -9 of whatever runs, at random moments of the main path: nothing is lost and nothing is different."""

from pathlib import Path

import pytest
from django.db import transaction

from jobs.models import Job, State
from jobs.queue import retry
from mistudio.forms.dataset import DatasetForm
from mistudio.forms.language_model import LanguageModelForm
from mistudio.forms.scan import ScanForm
from mistudio.forms.tokenization import TokenizationForm
from mistudio.forms.training import TrainingForm
from mistudio.models import Sae
from tests.files import contents
from tests.kills import VICTIMS, Killing
from tests.main_path import launch, write_texts
from tests.ml.tiny import documents, save_model, tiny_model

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

STRIKES = 12  # per step: a child needs seconds to load PyTorch, so that some fall before it did anything
TEXTS, SCANNED = 300_000, 1_500_000
TRAINING = {"site": "blocks.1.hook_resid_pre", "width": 256, "k": 8, "n_tokens": 1_500_000, "batch_tokens": 512}


@pytest.fixture
def storm(tmp_path):
    storm = Killing(tmp_path, seed=11)
    yield storm
    for process in storm.everybody():
        process.kill()


def written(folder: Path) -> dict[str, bytes]:
    return contents(folder, "**/*.safetensors", "**/*.npy")


def start(form_class, person, job_params=None, **data):
    """As the page does it. `job_params` are what no form asks for."""
    with transaction.atomic():  # no worker sees the job before it is complete
        form = form_class(data, team=person.team, owner=person)
        made = form.launch()
        assert made is not None, form.errors.as_text()
        Job.objects.filter(pk=made.job.pk).update(params={**made.job.params, **(job_params or {})})
    return made


def finished(storm, artifact, strikes):
    """The artifact when its job has succeeded, struck so many times. A job that gave up after three losses in a row is
    tried again, as a person would."""
    jobs = [artifact.job]

    def ended():
        jobs[-1].refresh_from_db()
        if jobs[-1].state == State.FAILED:
            assert jobs[-1].error_code == "WORKER_LOST", jobs[-1].error_message
            jobs.append(retry(jobs[-1]))
        return jobs[-1].state == State.SUCCEEDED

    before = len(storm.struck)
    storm.until(ended, strikes=before + strikes, pause=(0.5, 7), seconds=400)
    assert (sum(job.attempt for job in jobs) > 1) == (strikes > 0)
    artifact.refresh_from_db()
    assert artifact.ready and artifact.damage() == []
    return artifact


def test_thirty_kills_between_text_and_features_change_not_one_byte(storm, alice, tmp_path):
    model = launch(LanguageModelForm, alice, source=str(save_model(tiny_model("llama"), tmp_path / "tiny")))
    data = launch(
        DatasetForm, alice, source=str(write_texts(tmp_path / "texts.jsonl", documents(TEXTS))), text_column="text"
    )
    storm.start()

    def both(form_class, job_params=None, **data):
        """The same step undisturbed and in the storm, with what each wrote."""
        calm, struck = (
            finished(storm, start(form_class, alice, job_params, **data), strikes) for strikes in (0, STRIKES)
        )
        return calm, struck

    calm, struck = both(TokenizationForm, dataset=data.pk, language_model=model.pk, context_length=32, held_out=0.3)
    assert written(struck.folder) == written(calm.folder) != {}

    calm, struck = both(TrainingForm, {"checkpoint_seconds": 1.0}, tokenization=struck.pk, **TRAINING)
    calm, struck = (Sae.objects.get(training=run) for run in (calm, struck))
    assert written(struck.folder) == written(calm.folder) != {}

    calm, struck = both(ScanForm, sae=struck.pk, n_tokens=SCANNED)
    assert written(struck.folder) == written(calm.folder) != {}

    assert len(storm.struck) >= 30 and set(storm.struck) == set(VICTIMS), storm.struck
    assert storm.stop() == 0
    assert storm.left_over() == []
