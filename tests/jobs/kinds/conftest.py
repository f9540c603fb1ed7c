import shutil
from pathlib import Path

import pytest

from jobs.ml import documents
from tests.ml.tiny import save_model, tiny_model

CARD = b"---\nlicense: apache-2.0\n---\n# A tiny model\n"


@pytest.fixture
def small(monkeypatch):
    """Files of documents with few in each."""
    monkeypatch.setattr(documents, "SHARD_CHARACTERS", 2000)
    monkeypatch.setattr(documents, "GROUP_CHARACTERS", 500)
    monkeypatch.setattr("jobs.kinds.documents.CHECKED_EVERY", 1)


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """A model that nobody changes."""
    folder = save_model(tiny_model("llama"), tmp_path_factory.mktemp("model"))
    (folder / "README.md").write_bytes(CARD)
    return folder


@pytest.fixture
def source(original, tmp_path):
    """A model where somebody has it."""
    return Path(shutil.copytree(original, tmp_path / "source"))


@pytest.fixture
def folder(tmp_path):
    """Where miStudio keeps it."""
    return tmp_path / "models" / "7"
