"""The page about the engine as a library: what it says is run, block by block, as a reader would."""

import re
from pathlib import Path

import torch

from tests.ml.tiny import documents, save_model, tiny_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "library.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


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


def test_no_step_of_the_page_is_long():
    assert len(BLOCKS) >= 6 and max(len(block.splitlines()) for block in BLOCKS) <= 11
