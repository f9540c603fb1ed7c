import json
from pathlib import Path

import pytest
import torch

from tests.ml.tiny import tiny_tokens

torch.set_num_threads(1)  # the models are too small to share out, and tests run beside each other


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokens(tmp_path_factory.mktemp("tokens"))


@pytest.fixture
def lay(tmp_path):
    """Writes a file; text is UTF-8, and anything that is no text or bytes is JSON lines."""

    def lay(name: str, content) -> Path:
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return lay
