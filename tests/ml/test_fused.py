"""The kernels for GPUs, beside what they stand in for: on a GPU where there is one, else in Triton's interpreter."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from jobs.ml import fused, selection
from jobs.ml.config import Member, TrainConfig
from jobs.ml.sae import Moment
from jobs.ml.sites import Site
from jobs.ml.support import Sparse, gather_sum
from jobs.ml.train import Trainer
from tests.conftest import ROOT

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
needs_triton = pytest.mark.skipif(not fused.INSTALLED, reason="Triton is not installed: torch for CUDA brings it")
# Relative to the norm. Both sum in float32, in another order; bfloat16 is what the result is rounded to.
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@contextmanager
def kernels(used: bool) -> Iterator[None]:
    """Whether they are used, for tensors of whatever device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "usable", lambda tensor: used)
        yield


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12))


def places(width: int, counts: list[int]) -> Sparse:
    starts = torch.tensor([0, *counts[:-1]]).cumsum(0)
    return Sparse(torch.randint(width, (sum(counts),)).to(DEVICE), starts.to(DEVICE), width)


@needs_triton
@pytest.mark.parametrize("dtype", CLOSE)
def test_sums_and_products_of_few_rows_are_those_of_torch(dtype) -> None:
    torch.manual_seed(0)
    support = places(50, [0, 3, 40, 0, 16, 1, 0])  # none, fewer than a tile, more, as many; columns: one tile and a bit
    table, vectors = torch.randn(50, 150, device=DEVICE).to(dtype), torch.randn(7, 150, device=DEVICE).to(dtype)
    weights = torch.randn(60, device=DEVICE).to(dtype)
    told = []
    for used in (False, True):
        with kernels(used):
            told.append(
                [
                    gather_sum(table, support.latents, support.starts, weights),
                    support.dot_rows(vectors.float(), table.float()),
                    support.sum_rows(weights, vectors),
                    support.per_latent(weights),
                ]
            )
    for eager, own in zip(*told, strict=True):
        assert own.dtype == eager.dtype and own.shape == eager.shape
        assert far(own, eager) < CLOSE[dtype]


@needs_triton
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("k", "groups"), [(1, 4), (5, 24), (8, 32)])
def test_the_same_latents_are_largest_of_equal_ones_the_first(dtype, k, groups) -> None:
    a = torch.randn(5, selection.GROUP * groups, generator=torch.manual_seed(0)).to(dtype)
    a[1], a[2], a[3] = a[1].round(), 0.0, -a[3].abs()
    a[2, ::7] = -0.0
    assert torch.equal(fused.largest(a.to(DEVICE), k, selection.GROUP).cpu(), selection.largest(a, k))


@needs_triton
@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_a_step_with_the_kernels_has_the_gradients_of_one_without(architecture) -> None:
    told = []
    for used in (False, True):
        with kernels(used):
            one = trainer(architecture, DEVICE)
            x = torch.randn(12, 20, generator=torch.manual_seed(0)).to(DEVICE)
            one.begin({"x": x}, {"x": x})
            sums, fired = one.gather_gradients(x, x, moment(one))
            told.append([fired, *sums.values(), *(parameter.grad for parameter in one.sae.parameters())])
    for eager, own in zip(*told, strict=True):
        assert far(own, eager) < 1e-5


def trainer(architecture: str, device: str, **settings: int) -> Trainer:
    options = {"aux_coefficient": 1 / 32, "k": 1}
    config = TrainConfig(64, 1000, architecture, options, batch_tokens=12, **settings)
    return Trainer(Member(config, ("x",)), {"x": Site("x", 20, "", "input")}, device)


def moment(one: Trainer) -> Moment:
    return Moment(one.config, 1, torch.arange(5, device=one.device))


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
@pytest.mark.parametrize("micro", [None, 5])
def test_a_topk_step_asks_a_gpu_for_no_number(architecture, micro) -> None:
    """Each such question waits until the GPU has done all that it was told. What has no numbers cannot answer it."""
    one = trainer(architecture, "cuda" if CUDA else "meta", micro_batch_tokens=micro)
    x = torch.randn(12, 20, device=one.device)
    with kernels(CUDA and fused.INSTALLED), silent():
        one.gather_gradients(x, x, moment(one))
    assert all(parameter.grad is not None for parameter in one.sae.parameters()), "it came to its end"


@contextmanager
def silent() -> Iterator[None]:
    if not CUDA:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_triton
def test_kernels_that_do_not_work_here_step_aside_and_say_so(monkeypatch) -> None:
    works = fused.works.__wrapped__
    assert works(torch.device(DEVICE))

    def broken(*args, **options) -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(fused, "launch", broken)
    with pytest.warns(UserWarning, match="Triton cannot be used on .*: RuntimeError: no C compiler"):
        assert not works(torch.device(DEVICE))


def test_nothing_of_them_is_used_for_a_processor() -> None:
    assert not fused.usable(torch.zeros(1))


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from jobs.ml import triton_kernels as kernels

def compiled(kernel, constants, **types):
    types = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(kernel, types, values)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]

for numbers in ("*fp32", "*bf16"):
    given = {"table": numbers, "vectors": numbers, "weights": numbers, "out": numbers}
    given |= {name: "*i64" for name in ("rows", "starts", "latents")}
    for kernel in (kernels.gather_sum, kernels.gather_dot):
        compiled(kernel, {"ROWS": 16, "COLUMNS": 128}, **given)
        compiled(kernel, {"ROWS": 16, "COLUMNS": 128, "D": 1}, **given)
for bits in (16, 32):
    sizes = {"GROUP": 16, "BITS": bits, "MASK": 2 ** (bits - 1) - 1}
    compiled(kernels.largest_groups, {**sizes, "WIDTH": 4096}, bits=f"*i{bits}", out="*i32")
    compiled(kernels.largest_in_groups, {**sizes, "WIDTH": 64}, bits=f"*i{bits}", chosen_groups="*i32", out="*i64")
"""


@pytest.mark.slow
@needs_triton
def test_the_kernels_compile_for_a_gpu_that_need_not_be_there() -> None:
    """The interpreter takes more than the compiler does."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, cwd=ROOT, env=env, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
