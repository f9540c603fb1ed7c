"""The page about the engine as a library: what it says is run, block by block, as a reader would."""

import re
from pathlib import Path

import pytest
import torch

from jobs.ml.saelens import load_sae
from tests.ml.test_parallel import torchrun
from tests.ml.tiny import documents, save_model, tiny_model, tiny_tokens

PAGE = Path(__file__).resolve().parents[2] / "docs" / "library.md"
FOUND = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
BLOCKS, [SCRIPT] = [one for one in FOUND if one[0] != "#"], [one for one in FOUND if one.startswith("# train.py\n")]


def test_the_blocks_of_the_page_run_one_after_the_other_and_leave_what_it_says(tmp_path, monkeypatch):
    save_model(tiny_model("llama"), tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for n, text in enumerate(documents(120)):
        (tmp_path / "texts" / f"{n:03}.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, block in enumerate(BLOCKS, 1):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    assert set(names["saes"]) == {8, 16} and names["run"].finished
    assert names["found"]["fvu"] < 1 and names["found"]["tokens"] > 0
    assert (tmp_path / "sae" / "cfg.json").is_file()
    assert torch.isclose(names["direction"].norm(), torch.ones(()))
    assert not names["steered"].equal(names["plain"]) and names["foreign"].width == 256


@pytest.mark.slow
def test_the_script_of_the_page_is_run_by_two_processes(tmp_path, monkeypatch):
    save_model(tiny_model("llama"), tmp_path / "model")
    tiny_tokens(tmp_path / "tokens")
    (tmp_path / "train.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    done = torchrun("train.py")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("step 20 of 20, FVU 0.") == 1, "by the first alone"
    assert load_sae("shared-sae").width == 256


def test_no_step_of_the_page_is_long():
    assert len(BLOCKS) >= 6 and max(len(block.splitlines()) for block in BLOCKS) <= 11
