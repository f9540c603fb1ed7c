"""What the benchmarks keep and tell; not what they measure."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.libraries import OURS
from bench.sweep import Sweep
from tests.conftest import ROOT


def sweep(file: Path, data: str = "noise", **changes: int) -> Sweep:
    options = {"width": 16, "tokens": 64, "batch_tokens": 32, "held_out": 32, "k": 2, **changes}
    x = torch.randn(options["tokens"] + options["held_out"], 8, generator=torch.manual_seed(0))
    train, held_out = x.split([options["tokens"], options["held_out"]])
    told = argparse.Namespace(
        runs=str(file), architectures=["topk"], libraries=[OURS], rates=[1e-3], seeds=[1], **options
    )
    return Sweep(told, data, train.split(32), held_out.split(32), lambda learner: {"mcc": None})


@pytest.mark.parametrize("other", [{"held_out": 64}, {"data": "other noise"}])
def test_a_run_is_known_by_its_data_and_by_how_much_of_it_was_held_out(tmp_path, other: dict[str, Any]) -> None:
    file, run = tmp_path / "runs", (OURS, "topk", 1e-3, 1, {"k": 2})
    assert sweep(file).run(*run) == sweep(file).run(*run)
    assert len(file.read_text().splitlines()) == 1
    sweep(file, **other).run(*run)
    assert len(file.read_text().splitlines()) == 2


def test_what_was_not_measured_is_a_dash_in_the_table(tmp_path, capsys) -> None:
    sweep(tmp_path / "runs").table(["mcc", "l0"])
    assert "| TopK | miStudio | – | 2.0 |" in capsys.readouterr().out


def test_every_benchmark_can_be_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    files = {path.stem for path in (ROOT / "bench").glob("*.py") if "def main()" in path.read_text()}
    assert {"engine", "peers"} < files and not [name for name in files if name not in done.stdout]
