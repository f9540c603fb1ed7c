"""Which latents are chosen, with the compiled passes and without: the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.ml import compiled, selection, support
from jobs.ml.config import Member, TrainConfig
from jobs.ml.sites import Site
from jobs.ml.train import Trainer

DTYPES = st.sampled_from([torch.bfloat16, torch.float16, torch.float32])


def numbers(rows: int, width: int, dtype: torch.dtype, seed: int, coarse: bool, below: float) -> torch.Tensor:
    torch.manual_seed(seed)
    a = torch.randn(rows, width) - below
    return ((a * 4).round() / 4 if coarse else a).to(dtype)  # with ties, and zeros of both signs


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
def how(request, monkeypatch) -> None:
    monkeypatch.setattr(compiled, "INSTALLED", request.param)


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_compiled_passes_are_installed_where_tests_run() -> None:
    assert compiled.INSTALLED


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 9), groups=st.integers(4, 40), k=st.integers(1, 10), dtype=DTYPES, seed=st.integers(0, 99),
    coarse=st.booleans(), below=st.sampled_from([0.0, 5.0]),
)  # fmt: skip
def test_the_largest_of_each_row_are_the_same_compiled_and_plain(rows, groups, k, dtype, seed, coarse, below) -> None:
    """below: all are negative."""
    a = numbers(rows, 16 * groups, dtype, seed, coarse, below)
    k = min(k, groups // 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "INSTALLED", False)
        plain = selection.largest(a, k)
    latents = selection.largest(a, k)
    assert torch.equal(latents, plain)
    assert torch.equal(a.gather(1, latents).sort(dim=1).values, a.topk(k, dim=1).values.sort(dim=1).values)
    assert (latents.diff(dim=1) > 0).all()


def test_of_equal_pre_activations_the_first_are_chosen(how) -> None:
    assert selection.largest(torch.ones(3, 16 * 40).bfloat16(), 5).tolist() == [[0, 1, 2, 3, 4]] * 3


def test_rows_too_short_for_groups_are_chosen_from_as_well(how) -> None:
    assert selection.largest(torch.arange(20.0)[None], 3).sort().values.tolist() == [[17, 18, 19]]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 9), width=st.integers(1, 200), dtype=DTYPES, seed=st.integers(0, 99), coarse=st.booleans(),
    floor=st.sampled_from([-9.0, -0.25, -0.0, 0.0, 0.3, 1.75, 9.0]), for_each=st.booleans(),
)  # fmt: skip
def test_what_is_above_a_floor_is_the_same_compiled_and_plain(
    rows, width, dtype, seed, coarse, floor, for_each
) -> None:
    a = numbers(rows, width, dtype, seed, coarse, 0.0)
    floors = numbers(1, width, dtype, seed + 1, coarse, 0.0)[0] + floor if for_each else floor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "INSTALLED", False)
        plain = selection.above(a, floors)
    for found, wanted in zip(selection.above(a, floors), plain, strict=True):
        assert torch.equal(found, wanted)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(0, 50), width=st.integers(1, 20), seed=st.integers(0, 99))
def test_places_are_in_the_same_order_compiled_and_plain(n, width, seed) -> None:
    latents = torch.randint(width, (n,), generator=torch.manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "INSTALLED", False)
        plain = support.sort(latents, width)
    for found, wanted in zip(support.sort(latents, width), plain, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("architecture", ["topk", "abstopk", "batchtopk", "jumprelu"])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_training_has_the_same_weights_compiled_and_plain(architecture, precision, monkeypatch) -> None:
    def trained() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        batches = torch.randn(4, 256, 16)
        options = {"k": 3} if architecture != "jumprelu" else {}
        config = TrainConfig(
            256, 4 * 256, architecture=architecture, options=options, batch_tokens=256, selection=precision,
            dead_after_tokens=256,
        )  # fmt: skip
        trainer = Trainer(Member(config, ("x",)), {"x": Site("x", 16, "", "input")})
        trainer.begin({"x": batches[0]}, {"x": batches[0]})
        for step, batch in enumerate(batches):
            trainer.update({"x": batch}, step)
        return trainer.sae.state_dict()

    fast = trained()
    monkeypatch.setattr(compiled, "INSTALLED", False)
    plain = trained()
    assert all(torch.equal(fast[name], plain[name]) for name in plain)


@pytest.mark.parametrize("k", [None, 6])
def test_products_taken_block_by_block_are_to_the_last_bit_those_taken_row_by_row(k, monkeypatch) -> None:
    torch.manual_seed(0)
    counts = torch.full((50,), k) if k else torch.randint(0, 16, (50,))
    latents, starts = torch.randint(40, (int(counts.sum()),)), counts.cumsum(0) - counts
    vectors, table = torch.randn(50, 24), torch.randn(40, 24)
    row_by_row = support.Sparse(latents, starts, 40, k=k).dot_rows(vectors, table)
    monkeypatch.setattr(support, "CACHED", 0)
    monkeypatch.setattr(support, "BLOCK", 16 * 24)
    in_blocks = support.Sparse(latents, starts, 40, k=k)
    assert torch.equal(in_blocks.dot_rows(vectors, table), row_by_row)
    [(places, of_places, rows)] = in_blocks.orders.values()
    assert (rows // 16 * 40 + of_places).diff().min() >= 0, "so that a row of the table is met often while it is near"
    assert torch.equal(places.sort().values, torch.arange(len(latents)))
