import subprocess
import sys
from pathlib import Path

import pytest

from jobs import checks, kinds
from jobs.checks import check_kinds, check_queues
from tests.conftest import ROOT

GOOD = """
from dataclasses import dataclass
LABEL, QUEUE, RESUMABLE, STAGES = "Good", "cpu", False, {}
@dataclass(frozen=True)
class Params:
    x: int = 1
def run(params, ctx): return {}
"""


@pytest.fixture
def kind(tmp_path, monkeypatch):
    """The words of the check about a kind with this source."""

    def make(source):
        name = f"kind_{abs(hash(source))}"
        Path(tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(checks, "KINDS", {"odd": name})
        return [message.msg for message in check_kinds()]

    return make


def test_all_kinds_and_queues_are_complete():
    assert check_kinds() == [] and check_queues() == []


def test_a_complete_kind_passes(kind):
    assert kind(GOOD) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (GOOD.replace('"cpu"', '"tpu"'), "QUEUE is none of gpu, cpu"),
        (GOOD.replace("LABEL,", "LABLE,"), "LABEL is missing"),
        (GOOD.replace("(frozen=True)", ""), "Params is no frozen dataclass"),
        (GOOD.replace("def run", "def walk"), "run() is missing"),
        ("import torch.nn\n" + GOOD, "imports torch at the top"),
        ("from transformers import AutoModel\n" + GOOD, "imports transformers at the top"),
    ],
)
def test_what_is_missing_or_heavy_is_named_before_any_job_runs(kind, source, words):
    assert any(words in message for message in kind(source))


def test_a_kind_without_a_module_is_found(monkeypatch):
    monkeypatch.setattr(checks, "KINDS", {"gone": "jobs.kinds.gone", "far": "no.such.package"})
    assert [message.msg for message in check_kinds()] == [
        "Job kind “gone”: there is no module jobs.kinds.gone.",
        "Job kind “far”: there is no module no.such.package.",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ALT_CLUSTERS": None}, "must name gpu and cpu"),
        ({"ALT_CLUSTERS": {"gpu": {"timeout": 1, "retry": 2}}}, "must name gpu and cpu"),
        ({"timeout": None}, "default: retry must be larger"),
        ({"timeout": 10, "retry": 10}, "default: retry must be larger"),
    ],
)
def test_queues_that_would_deliver_a_running_job_again_are_refused(settings, change, words):
    settings.Q_CLUSTER = {**settings.Q_CLUSTER, **change}
    assert words in check_queues()[0].msg


def test_looking_at_all_kinds_imports_nothing_heavy():
    code = (
        "import django; django.setup()\n"
        "from jobs.checks import HEAVY, check_kinds; check_kinds()\n"
        "from jobs.kinds import KINDS, load_kind; [load_kind(name) for name in KINDS]\n"
        "import jobs.supervise, jobs.views, jobs.work, mistudio.asgi, sys\n"
        "print(sorted(HEAVY & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_kind_of_the_table_can_be_loaded():
    assert {kinds.load_kind(name).__name__ for name in kinds.KINDS} == set(kinds.KINDS.values())
