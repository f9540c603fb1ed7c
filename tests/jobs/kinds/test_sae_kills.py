"""kill -9 at every change to the disk that an import and an export of an SAE make."""

import json
import os
import subprocess
import sys

import pytest

from jobs.ml.saelens import save_sae
from tests.conftest import ROOT
from tests.ml import foreign
from tests.ml.test_formats import trained

pytestmark = pytest.mark.slow


def killed(kind, params, folder):
    argv = [sys.executable, "-m", "tests.kill_points", kind, json.dumps(params), str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MISTUDIO_PEERS": ""}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(seen, finished, at_least):
    """What has its final name is whole, whenever the kill came, and the next attempt leaves what one alone does."""
    assert len(seen["found"]) >= at_least
    for moment in seen["found"]:
        assert moment["after"] == seen["whole"]
        names = [name for name in moment["killed"] if finished(name)]
        assert {name: moment["killed"][name] for name in names} == {name: seen["whole"][name] for name in names}
    assert any(moment["killed"] != seen["whole"] for moment in seen["found"])


def test_an_import_killed_anywhere_is_the_same_after_the_next_attempt(tmp_path):
    foreign.dictionary_learning(tmp_path / "there", "BatchTopKSAE")
    params = {"source": str(tmp_path / "there"), "folder": str(tmp_path / "made/sae")}
    seen = killed("import_sae", params, tmp_path / "made")
    assert set(seen["whole"]) == {"sae/cfg.json", "sae/sae_weights.safetensors", "sae/manifest.json"}
    check(seen, lambda name: name.startswith("sae/") and "/." not in name, at_least=10)


@pytest.mark.parametrize("format", ["saelens", "llama_scope"])
def test_an_export_killed_anywhere_is_the_same_after_the_next_attempt(tmp_path, format):
    save_sae(trained("jumprelu"), tmp_path / "sae", reads=["blocks.3.hook_resid_post"])
    params = {"sae_folder": str(tmp_path / "sae"), "folder": str(tmp_path / "out"), "format": format}
    seen = killed("export_sae", params, tmp_path / "out")
    assert set(seen["whole"]) == {f"sae-{format}.zip", "manifest.json"}
    check(seen, lambda name: "/" not in name and not name.startswith("."), at_least=10)
