"""Several processes, and several devices, that train the SAEs of one run. The processes are real, and talk by gloo."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from jobs.context import Context
from jobs.errors import InvalidInput, Paused
from jobs.kinds import train_sae
from jobs.ml import checkpoint
from jobs.ml.config import BadConfig
from jobs.ml.parallel import ALONE, Ranks
from jobs.ml.saelens import load_sae
from jobs.ml.train import Run, Trainer
from jobs.ranks import company, ending, start
from tests.conftest import ROOT, free_port
from tests.ml import ranks
from tests.ml.test_kinds import Wishful, home, params, train_once  # noqa: F401  a fixture
from tests.ml.test_train import of_all, same
from tests.ml.tiny import killed_at

# Relative to the norm of a tensor, after 30 steps: sums of floats are rounded in another order. The penalty of p-anneal
# has a slope near zero that has no bound, so rounding shows: micro-batches in one process make as much difference.
CLOSE = {"p_anneal": 1e-2}


def torchrun(*arguments: str, n: int = 2) -> subprocess.CompletedProcess:
    """n processes of this machine, as docs/library.md starts them."""
    where = ["--nproc-per-node", str(n), "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    argv = [sys.executable, "-m", "torch.distributed.run", *where, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=600, env=env, check=False)


@pytest.fixture(scope="module")
def folder(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun("-m", "tests.ml.ranks", str(tokens), str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def one(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The same by one process."""
    path, run = tmp_path_factory.mktemp("one") / "one.safetensors", ranks.together(tokens)
    ranks.kept(run, ranks.ended(run), path)
    return load_file(path)


def of_sae(tensors: dict[str, torch.Tensor], n: int) -> dict[str, torch.Tensor]:
    return {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{n}.")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ranks.SHARED)
def test_two_processes_with_half_of_each_batch_make_what_one_makes_with_all_of_it(folder, one, name) -> None:
    n = ranks.SHARED.index(name)
    expected, found = of_sae(one, n), of_sae(load_file(folder / "through-0.safetensors"), n)
    assert expected.keys() == found.keys()
    for what in ("bad_step",) if name in CLOSE else ("silent", "dead", "bad_step", "metric.l0", "metric.dead"):
        assert torch.equal(expected[what], found[what]), f"{what}: the same latents are active"
    for what, value in expected.items():
        if what.startswith(("sae.", "metric.")):
            error = (value - found[what]).double().norm() / value.double().norm().clamp_min(1e-12)
            limit = CLOSE.get(name, 1e-5) * (10 if name in CLOSE and what.startswith("metric.") else 1)
            assert error < limit, f"{what}: {error}"


@pytest.mark.slow
def test_some_of_their_latents_were_dead_so_that_reviving_them_was_part_of_the_proof(one) -> None:
    assert "metric.aux" in of_sae(one, ranks.SHARED.index("batchtopk"))


@pytest.mark.slow
@pytest.mark.parametrize("other", ["through-1", "resumed-0", "resumed-1"])
def test_both_hold_the_same_to_the_last_bit_and_so_do_those_that_were_resumed(folder, other) -> None:
    assert same(load_file(folder / "through-0.safetensors"), load_file(folder / f"{other}.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ranks.SHARED)
def test_saes_that_are_dealt_out_to_processes_are_to_the_last_bit_what_they_are_in_one(folder, one, name) -> None:
    n = ranks.SHARED.index(name)
    found = of_sae(load_file(folder / f"dealt-{n % 2}.safetensors"), n // 2)
    assert same(found, of_sae(one, n)), "they shared the forward passes alone"


def test_saes_that_are_dealt_out_to_devices_are_to_the_last_bit_what_they_are_on_one(tokens) -> None:
    names = ["topk", "batchtopk", "jumprelu"]
    members = [of_all(name) for name in names]
    one, two = Run(members, ranks.stream(tokens)), Run(members, ranks.stream(tokens), devices=["cpu", "cpu:0"])
    assert [trainer.device for trainer in two.trainers] == ["cpu", "cpu:0", "cpu"]
    told = [ranks.ended(run) for run in (one, two)]
    for n, name in enumerate(names):
        assert same(*(checkpoint.state_tensors(run.trainers[n]) for run in (one, two))), name
        assert same(*(metrics[n] for metrics in told)), name


def test_what_a_run_begins_with_is_copied_once_to_each_device(tokens, monkeypatch) -> None:
    given, begin = [], Trainer.begin

    def told(trainer: Trainer, sample: Any, batch: Any) -> None:
        given.append((trainer.device, sample, batch))
        begin(trainer, sample, batch)

    monkeypatch.setattr(Trainer, "begin", told)
    run = Run([of_all("topk", seed) for seed in range(4)], ranks.stream(tokens), devices=["cpu", "cpu:0"])
    ranks.ended(run, 1)
    assert sorted(device for device, *_ in given) == ["cpu", "cpu", "cpu:0", "cpu:0"]
    assert len({(id(sample), id(batch)) for _, sample, batch in given}) == 2


def test_a_batch_that_cannot_be_shared_is_refused_by_its_name(tokens) -> None:
    with pytest.raises(BadConfig, match="batch_tokens must be a multiple of the 3 processes") as refused:
        Run([of_all("topk")], ranks.stream(tokens), ranks=Ranks(0, 3))
    assert refused.value.field == "batch_tokens"
    with pytest.raises(BadConfig, match="each has one of its own"):
        Run([of_all("topk")], ranks.stream(tokens), devices=["cpu", "cpu"], ranks=Ranks(0, 2))


def test_the_rows_of_all_processes_are_all_rows_once() -> None:
    assert [row for rank in range(3) for row in range(12)[Ranks(rank, 3).own(12)]] == list(range(12))
    assert ALONE.own(12) == slice(0, 12) and ALONE.first


# ---- the kind, whose other processes it starts itself


class AloneInTheEnd(Context):
    def stage(self, name: str, total: float = 0, unit: str = "") -> None:
        if name == "evaluate":
            assert not dist.is_initialized(), "the others are no longer needed"
        super().stage(name, total, unit)


@pytest.mark.slow
def test_a_training_by_two_processes_that_is_paused_and_then_killed_ends_as_the_undisturbed_one(home, tmp_path) -> None:  # noqa: F811
    def mine(name: str, **changes: Any) -> train_sae.Params:
        folder = tmp_path / name
        return params(train_sae, home, "x", folder=str(folder), sae_folder=str(folder / "sae"), processes=2, **changes)

    def weights(name: str) -> bytes:
        return (tmp_path / name / "sae" / "sae_weights.safetensors").read_bytes()

    told = train_sae.run(mine("through"), AloneInTheEnd(1, 1, train_sae.STAGES))
    assert told["processes"] == 2 and told["measured"]["runs"] == {}, "no measurement of the model alone"
    one = load_sae(home / "training" / "sae")
    assert torch.allclose(load_sae(tmp_path / "through" / "sae").W_dec, one.W_dec, atol=1e-5)
    with pytest.raises(Paused):
        train_sae.run(mine("broken"), Wishful(train_sae, "pause", 14))
    assert killed_at(1, "write_tensors", train_once, mine("broken", checkpoint_seconds=0.0))
    train_sae.run(mine("broken"), Context(1, 3, train_sae.STAGES))
    assert weights("broken") == weights("through")


@pytest.mark.parametrize(
    ("code", "out_of_memory", "expected", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", False, "WORKER_LOST", "Process 3 of 3 was killed by SIGKILL, and"),
        ("import os; os.kill(os.getpid(), 9)", True, "OUT_OF_MEMORY", "The kernel killed process 3 of 3 because"),
        ("import sys; sys.exit(4)", False, "WORKER_LOST", "Process 3 of 3 ended with exit code 4, and"),
        (
            "import json, sys; print(json.dumps("
            "{'code': 'DISK_FULL', 'message': 'no room', 'hint': 'make some', 'field': ''})); sys.exit(1)",
            False, "DISK_FULL", "Process 3 of 3 failed: no room",
        ),
    ],
)  # fmt: skip
def test_how_another_process_ended_is_told(code, out_of_memory, expected, said) -> None:
    argv = [[sys.executable, "-c", text] for text in ("import time; time.sleep(60)", code)]
    others = [subprocess.Popen(one, stdout=subprocess.PIPE) for one in argv]
    why = ending(others, out_of_memory)
    others[0].kill()
    others[0].wait()
    assert why.code == expected and why.message.startswith(said)


def test_one_that_ends_before_it_began_keeps_nobody_waiting_and_its_wrong_input_the_name_of_the_field() -> None:
    wrong = {"model_folder": "/m", "tokens_folder": "/t", "folder": "/f", "tokens": 1, "saes": []}
    with pytest.raises(InvalidInput, match="Process 2 of 2 failed: Give at least one SAE") as refused:  # noqa: SIM117
        with company("train_sae", wrong, 2):
            pytest.fail("nobody came")
    assert refused.value.field == "saes"


def test_one_that_cannot_be_started_leaves_none_that_was(monkeypatch) -> None:
    started: list[Any] = []

    def start_one(told: dict[str, Any]) -> Any:
        if started:
            raise OSError(errno.EAGAIN, "no more processes")
        started.append(start(told))
        return started[0]

    monkeypatch.setattr("jobs.ranks.start", start_one)
    with pytest.raises(OSError, match="no more processes"), company("none", {}, 3):
        pytest.fail("one is missing")
    assert started[0].returncode == -signal.SIGKILL


def watching(before: str) -> subprocess.CompletedProcess:
    """One process that watches another, which ends with exit code 4."""
    code = (
        "import subprocess, sys, threading; from jobs import ranks; ranks.PATIENCE = 0.2; over = threading.Event(); "
        f"other = subprocess.Popen([sys.executable, '-c', 'raise SystemExit(4)']); {before}; ranks.watch([other], over)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


def test_one_whose_other_ended_does_not_wait_forever_while_they_share_work_and_goes_on_afterwards() -> None:
    done = watching("other.wait()")
    assert (done.returncode, "Another process of this job ended" in done.stderr) == (1, True)
    assert watching("other.wait(); over.set()").returncode == 0


def test_a_number_of_processes_that_do_not_share_a_batch_evenly_is_refused(home) -> None:  # noqa: F811
    with pytest.raises(InvalidInput, match="multiple of the 3 processes") as refused:
        params(train_sae, home, "x", processes=3)
    assert refused.value.field == "processes"
