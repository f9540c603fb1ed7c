"""`make demo`: the main path on what is bundled, and what a second call makes of what the first one left."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest

from jobs.models import Job, State
from mistudio.demo import pipeline
from mistudio.demo.pipeline import Demo
from mistudio.models import Training
from tests.conftest import ROOT, free_port
from tests.main_path import work, write_texts
from tests.ml.tiny import documents


class Failed(Exception):
    pass


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A small one, and a small SAE: a few seconds instead of minutes."""
    small = {**pipeline.TRAINING, "width": 64, "k": 4, "n_tokens": 2048, "batch_tokens": 512}
    monkeypatch.setattr(pipeline, "TRAINING", small)
    return write_texts(tmp_path / "corpus.jsonl", documents(100))


@pytest.fixture
def demo(alice, corpus):
    return lambda finish=work: Demo(alice.team, alice, corpus, finish).run()


@pytest.mark.django_db
def test_the_demo_ends_with_features_and_a_second_call_reuses_all_of_it(demo):
    sae, scan = demo()
    assert sae.width == 64 == scan.n_alive + scan.n_dead == sae.features.count()
    made = Job.objects.count()

    def nothing_is_left_to_do(row):
        raise AssertionError(f"{row} is done again")

    assert demo(nothing_is_left_to_do) == (sae, scan)
    assert Job.objects.count() == made == 5


@pytest.mark.django_db
@pytest.mark.parametrize("state", [State.FAILED, pytest.param(State.CANCELLED, marks=pytest.mark.slow), State.PAUSED])
def test_a_second_call_goes_on_with_what_the_first_one_left(demo, state):
    def leave_the_training(row):
        if not isinstance(row, Training):
            return work(row)
        assert row.job.move(State.RUNNING) and row.job.move(state)
        raise Failed

    with pytest.raises(Failed):
        demo(leave_the_training)
    left = Training.objects.get()
    assert left.job.state == state
    sae, _ = demo()
    assert sae.training == left and sae.training.job.state == State.SUCCEEDED
    assert Job.objects.filter(kind="train_sae").count() == (1 if state == State.PAUSED else 2)


class Running:
    """`manage.py demo` as a newcomer runs it, in a data folder of its own."""

    def __init__(self, folder):
        self.out = folder / "out.txt"
        self.data = str(folder / "data")
        env = {**os.environ, "MISTUDIO_DATA": self.data, "MISTUDIO_PORT": str(free_port())}
        env.pop("DATABASE_URL", None)
        env.pop("MISTUDIO_TEST_DATABASE", None)
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "demo"],
            cwd=ROOT,
            env=env,
            stdout=self.out.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def links(self, seconds):
        """The addresses it has printed, as soon as there is one."""
        deadline = time.monotonic() + seconds
        while not (found := re.findall(r"http://\S+", self.out.read_text())):
            assert self.process.poll() is None and time.monotonic() < deadline, self.out.read_text()[-3000:]
            time.sleep(0.5)
        return found

    def left_over(self):
        """Processes on its data: workers and jobs have sessions of their own, but the environment of all is one."""
        return [
            p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("MISTUDIO_DATA") == self.data
        ]

    def interrupt(self):
        os.kill(self.process.pid, signal.SIGINT)
        return self.process.wait(60)


@pytest.mark.slow
def test_make_demo_serves_one_link_and_ctrl_c_ends_everything(tmp_path):
    first = Running(tmp_path)
    [link] = first.links(seconds=600)
    said = first.out.read_text()
    assert re.search(r"2,048 features, \d,\d{3} alive, after \d+ s\.", said), said
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    home = browser.open(link)
    site = link.split("/login/")[0]
    assert home.url == f"{site}/" and "demo-sae" in home.read().decode()
    assert first.interrupt() == 130
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(site, timeout=2)
    assert first.left_over() == []

    began = time.monotonic()
    again = Running(tmp_path)
    [other] = again.links(seconds=60)
    assert other != link and time.monotonic() - began < 60
    assert "alive, after 0 s" in again.out.read_text()
    assert again.interrupt() == 130 and again.left_over() == []
