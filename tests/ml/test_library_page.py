"""The page about the engine as a library: what it says is run, block by block, as a reader would."""

import re
from pathlib import Path

import pytest
import torch

from tests.ml.tiny import documents, save_model, tiny_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "library.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A folder with what the page asks for, and the names that its blocks leave."""
    folder = tmp_path_factory.mktemp("notebook")
    save_model(tiny_model("llama"), folder / "model")
    (folder / "texts").mkdir()
    for n, text in enumerate(documents(120)):
        (folder / "texts" / f"{n:03}.txt").write_text(text)
    return folder, {}


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=lambda n: f"block {n + 1}")
def test_every_block_of_the_page_runs_after_those_before_it(number, reader, monkeypatch):
    folder, names = reader
    monkeypatch.chdir(folder)
    exec(compile(BLOCKS[number], f"{PAGE.name}, block {number + 1}", "exec"), names)


def test_the_page_leaves_two_saes_that_were_trained_and_one_that_was_loaded(reader):
    folder, names = reader
    assert set(names["saes"]) == {8, 16} and names["run"].finished
    assert names["found"]["fvu"] < 1 and names["found"]["tokens"] > 0
    assert (folder / "sae" / "cfg.json").is_file()
    assert torch.isclose(names["direction"].norm(), torch.ones(()))


def test_no_step_of_the_page_is_long():
    assert len(BLOCKS) >= 6 and max(len(block.splitlines()) for block in BLOCKS) <= 11
