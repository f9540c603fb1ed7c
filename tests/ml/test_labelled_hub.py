"""Labelled texts of the hub, in a process of its own: its libraries take HF_ENDPOINT when they are first imported."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.hub_server import HubServer

READ = """
import json, sys
from jobs.ml.hub import Patience
from jobs.ml.labelled import Columns, hub_rows, sample
patience = Patience(lambda: None, lambda text: None, tries=1)
found = []
for text, label in json.load(sys.stdin):
    columns = Columns(text, label)
    try:
        rows = hub_rows("owner/reviews", "", "train", "", columns, patience)
        found.append(sample(rows, columns, texts=60))
    except ValueError as error:
        found.append([str(error), error.field])
json.dump(found, sys.__stdout__)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list:
    from datasets import ClassLabel, Dataset, Features, Value

    root = tmp_path_factory.mktemp("hub")
    rows = {"text": [f"text {n}" for n in range(100)], "label": [n % 2 if n < 90 else -1 for n in range(100)]}
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    Dataset.from_dict(rows, features=features).to_parquet(root / "train.parquet")
    with HubServer() as hub:
        hub.add("dataset", "owner/reviews", {"train.parquet": (root / "train.parquet").read_bytes()})
        done = subprocess.run(
            [sys.executable, "-c", READ], input=json.dumps([["text", "label"], ["text", "stars"]]),
            env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"},
            capture_output=True, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_classes_have_their_names_and_what_is_not_labelled_is_left_out(found) -> None:
    texts = found[0]
    assert {label: sum(one[1] == label for one in texts) for label in ("bad", "good")} == {"bad": 30, "good": 30}
    assert all(int(text.split()[1]) % 2 == (label == "good") for text, label, _ in texts)
    assert all(int(text.split()[1]) < 90 for text, _, _ in texts)


def test_a_column_that_the_dataset_does_not_have_is_named_with_those_it_has(found) -> None:
    assert found[1] == ["owner/reviews has no column “stars”. It has: label, text.", "label_column"]
