"""A download that is stopped in the middle of a file, by a person or by a kill, loses and repeats nothing."""

import os
import signal
import threading

import pytest
from django.db import connection

from jobs.models import Job, State
from jobs.queue import request_cancel, request_pause, resume, retry
from jobs.supervise import run_here
from mistudio.forms.language_model import LanguageModelForm
from tests.jobs.conftest import until
from tests.ml.tiny import save_model, tiny_model

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]
MIDDLE = 1_000_000


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    model = tiny_model("llama", hidden_size=128, intermediate_size=1024)
    folder = save_model(model, tmp_path_factory.mktemp("model"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(hub, files, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "5")
    hub.add("model", "owner/tiny", files)
    return hub


def kill(job):
    os.kill(job.pid, signal.SIGKILL)


def again(job):
    """As a person would: resume what is paused, retry what was cancelled; what was killed waits by itself."""
    if job.state == State.PAUSED:
        assert resume(job)
    return retry(job) if job.state == State.CANCELLED else job


@pytest.mark.parametrize(
    ("stop", "then"),
    [(request_pause, State.PAUSED), (request_cancel, State.CANCELLED), (kill, State.QUEUED)],
    ids=["pause", "cancel", "kill"],
)
def test_a_download_stopped_mid_file_goes_on_without_fetching_a_byte_twice(hub, alice, stop, then):
    silence = threading.Event()
    hub.fault("model.safetensors", breaks_after=MIDDLE, holds=silence)
    form = LanguageModelForm({"source": "owner/tiny"}, team=alice.team, owner=alice)
    model = form.launch()

    def partial():
        return [path for path in model.folder.glob(".model.safetensors.*.partial") if path.stat().st_size == MIDDLE]

    def interrupt():
        until(partial)
        stop(Job.objects.get(pk=model.job.pk))
        connection.close()

    interruption = threading.Thread(target=interrupt)
    interruption.start()
    job = run_here(model.job)
    interruption.join()
    assert job.state == then and partial()
    silence.set()

    done = run_here(again(job))
    assert done.state == State.SUCCEEDED, done.error_message
    weights = hub.repositories[("model", "owner/tiny")].files["model.safetensors"]
    assert [headers.get("Range", "") for headers in hub.fetched("model.safetensors")] == ["", f"bytes={MIDDLE}-"]
    assert hub.sent["model.safetensors"] == len(weights) > MIDDLE
    assert (model.folder / "model.safetensors").read_bytes() == weights
    assert hub.sent["tokenizer.json"] == len(hub.repositories[("model", "owner/tiny")].files["tokenizer.json"])
