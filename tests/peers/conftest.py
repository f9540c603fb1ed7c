"""The peers live in an environment of their own: MISTUDIO_PEERS names its Python. Without it the tests skip."""

import os
import subprocess

import pytest

from jobs.ml.formats import certify


@pytest.fixture(scope="session")
def peers() -> str:
    python = os.environ.get(certify.PEERS, "")
    if not python:
        pytest.skip(f"{certify.PEERS} names no Python that has sae-lens, eai-sparsify and dictionary-learning")
    subprocess.run([python, "-Ic", "import sae_lens, sparsify, dictionary_learning"], check=True, capture_output=True)
    return python
