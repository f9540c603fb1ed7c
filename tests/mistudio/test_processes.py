"""Trainings that several processes share, from the form to the kill."""

import os
import shlex
from io import StringIO

import psutil
import pytest
from django.core.management import call_command

from jobs.models import Job, State
from jobs.queue import request_finish, retry
from jobs.supervise import run_here
from mistudio.forms.dataset import DatasetForm
from mistudio.forms.language_model import LanguageModelForm
from mistudio.forms.tokenization import TokenizationForm
from mistudio.forms.training import TrainingForm
from mistudio.models import Sae, Training
from tests import rows
from tests.jobs.conftest import until
from tests.main_path import launch, write_texts
from tests.mistudio.test_forms import errors, launched
from tests.ml.tiny import documents, save_model, tiny_model

SITE = "blocks.1.hook_resid_pre"
RUN = {"site": SITE, "width": 32, "k": 4, "n_tokens": 10**8, "batch_tokens": 256}


@pytest.mark.django_db
def test_the_number_of_processes_reaches_the_job_and_is_in_the_command_that_makes_the_same(alice):
    tokens = rows.tokenization(alice.team)
    run = launched(TrainingForm, alice, {**RUN, "tokenization": tokens.pk, "processes": 2})
    assert run.job.params["processes"] == 2 and "--processes 2" in run.command()
    words = shlex.split(run.command())[1:]
    words[words.index("--name") + 1] = "again"
    call_command(*words, "--no-wait", "--team", alice.team.name, stdout=StringIO(), stderr=StringIO())
    assert Training.objects.get(name="again").job.params["processes"] == 2
    one = launched(TrainingForm, alice, {**RUN, "tokenization": tokens.pk})
    assert one.job.params["processes"] == 1 and "--processes" not in one.command()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("n", "said"), [("3", "256 tokens is not shared evenly by 3"), ("0", "0 is outside 1"), ("65", "65 is outside 1")]
)
def test_a_number_of_processes_that_cannot_be_is_refused(alice, n, said):
    sent = {**RUN, "tokenization": rows.tokenization(alice.team).pk, "processes": n}
    assert said in errors(TrainingForm, alice, sent)["processes"]


def family(job: Job) -> list[psutil.Process]:
    """The process of the job, and the others that it started."""
    first = psutil.Process(job.pid)
    return [first, *first.children(recursive=True)]


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def struck(job: Job, which: int) -> tuple[Job, list[psutil.Process]]:
    """The job after a run in which, as soon as it trained, this one of its processes was killed."""
    seen: list[psutil.Process] = []

    def look(now: Job) -> None:
        if now.done and not seen:
            seen.extend(family(now))
            seen[which].kill()

    return run_here(job, on_look=look), seen


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_whichever_of_two_processes_is_killed_the_job_ends_at_once_and_nobody_is_left(alice, tmp_path):
    model = launch(LanguageModelForm, alice, source=str(save_model(tiny_model("llama"), tmp_path / "tiny")))
    data = launch(
        DatasetForm, alice, source=str(write_texts(tmp_path / "texts.jsonl", documents(150))), text_column="text"
    )
    tokens = launch(TokenizationForm, alice, dataset=data.pk, language_model=model.pk, context_length=32, held_out=0.3)
    run = launched(TrainingForm, alice, {**RUN, "tokenization": tokens.pk, "dtype": "float32", "processes": 2})

    job, both = struck(run.job, 1)
    assert len(both) == 2 and until(lambda: not any(map(lives, both)), seconds=20)
    assert (job.state, job.error_code) == (State.FAILED, "WORKER_LOST")
    assert job.error_message == "Process 2 of 2 was killed by SIGKILL, and the others cannot go on without it."
    assert "goes on from the last checkpoint" in job.error_hint

    job, both = struck(retry(job), 0)
    assert len(both) == 2 and until(lambda: not any(map(lives, both)), seconds=20)
    assert job.state == State.QUEUED, "as for a job of one process: another attempt is made"

    groups: set[int] = set()

    def look(now: Job) -> None:
        if now.pid and len(both := family(now)) == 2:
            groups.update(os.getpgid(one.pid) for one in both)
            request_finish(now)

    job = run_here(job, on_look=look)
    assert job.state == State.SUCCEEDED and groups == {job.pid}, "one group, that a cancel reaches"
    run.refresh_from_db()
    assert run.ready and run.result["processes"] == 2 and run.result["stopped_early"]
    assert Sae.objects.get(training=run).fvu > 0
