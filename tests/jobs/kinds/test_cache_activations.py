import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from jobs.context import Context
from jobs.errors import InvalidInput, Paused, classify
from jobs.kinds import cache_activations, make_params, train_sae
from jobs.ml import cache_layout, checkpoint, store
from jobs.ml.activation_cache import BeyondFloat16
from jobs.ml.cached_activations import CacheMissing
from jobs.ml.calibration import FILE
from jobs.ml.config import UNSETTLED_ROWS
from jobs.ml.disk import DiskFull
from jobs.ml.language_model import load_model
from tests.files import contents
from tests.ml.test_kinds import Wishful, train_once
from tests.ml.tiny import killed_at, save_model, tiny_model, tiny_tokens

SITE, OTHER = "blocks.1.hook_resid_post", "blocks.2.hook_z"
WEIGHTS = "sae/sae_weights.safetensors"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch) -> None:
    monkeypatch.setattr(cache_layout, "SHARD_TOKENS", 1000)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and tokens, without a cache."""
    home = tmp_path_factory.mktemp("home")
    save_model(tiny_model("llama"), home / "model")
    tiny_tokens(home / "tokens")
    return home


def caching(home: Path, folder: Path, **changes: Any) -> cache_activations.Params:
    known = {
        "model_folder": str(home / "model"), "tokens_folder": str(home / "tokens"), "folder": str(folder),
        "sites": [SITE, OTHER], "tokens": 10**9, "stored": "float32",
        "dtype": "float32", "model_batch": 8,
    }  # fmt: skip
    return make_params(cache_activations, known | changes)


def training(home: Path, folder: Path, **changes: Any) -> train_sae.Params:
    known = {
        "model_folder": str(home / "model"), "tokens_folder": str(home / "tokens"), "folder": str(folder),
        "saes": [{"folder": str(folder / "sae"), "reads": [SITE], "width": 48, "options": {"k": 4}, "lr": 2e-3}],
        "tokens": 12_000, "batch_tokens": 100, "buffer_tokens": 2000, "evaluation_tokens": 800,
    }  # fmt: skip
    return make_params(train_sae, known | changes)


@pytest.fixture(scope="module")
def cached_once(home, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("once") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_layout, "SHARD_TOKENS", 1000)
        cache_activations.run(caching(home, folder), Context(1, 1, cache_activations.STAGES))
    return folder


@pytest.fixture
def cached(cached_once, tmp_path) -> Path:
    return Path(shutil.copytree(cached_once, tmp_path / "cache"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sites": []}, "sites"), ({"sites": [SITE, SITE]}, "sites"), ({"tokens": 0}, "tokens"),
        ({"model_batch": 0}, "model_batch"), ({"dtype": "float8"}, "dtype"), ({"stored": "float8"}, "stored"),
        ({"tokens_folder": "here"}, "tokens_folder"),
    ],
)  # fmt: skip
def test_settings_that_make_no_cache_are_refused(home, tmp_path, change, field) -> None:
    with pytest.raises(InvalidInput) as refused:
        caching(home, tmp_path, **change)
    assert refused.value.field == field


def test_a_run_tells_what_was_measured_and_how_far_it_is_in_tokens(home, tmp_path) -> None:
    ctx = Context(1, 1, cache_activations.STAGES)
    result = cache_activations.run(caching(home, tmp_path), ctx)
    assert (ctx.snapshot.stage, ctx.snapshot.unit) == ("read", "tokens")
    assert ctx.snapshot.done == ctx.snapshot.total == result["sequences"] * 16
    assert set(result["statistics"]) == {SITE, OTHER}
    assert result["tokens"] == result["statistics"][SITE]["tokens"] and result["tokens_per_second"] > 0


def test_a_finished_cache_is_verified_and_nothing_is_measured_anew(home, cached) -> None:
    before = contents(cached)
    ctx = Context(1, 2, cache_activations.STAGES)
    result = cache_activations.run(caching(home, cached), ctx)
    assert ctx.snapshot.stage == "verify" and result["tokens_per_second"] is None
    assert contents(cached) == before


def test_a_pause_in_the_pass_ends_with_the_same_bytes(home, cached, tmp_path) -> None:
    mine = caching(home, tmp_path / "mine")
    with pytest.raises(Paused):
        cache_activations.run(mine, Wishful(cache_activations, "pause", 25))
    there = len(list((tmp_path / "mine").glob("shard-*")))
    ctx = Context(1, 2, cache_activations.STAGES)
    cache_activations.run(mine, ctx)
    assert there > 1 and contents(tmp_path / "mine") == contents(cached)


def cache_once(params: cache_activations.Params) -> None:
    cache_layout.SHARD_TOKENS = 1000
    cache_activations.run(params, Context())


@pytest.mark.slow
def test_a_kill_in_the_pass_ends_with_the_same_bytes(home, cached, tmp_path) -> None:
    mine = caching(home, tmp_path / "mine")
    assert killed_at(3, "write_tensors", cache_once, mine)
    cache_activations.run(mine, Context(1, 2, cache_activations.STAGES))
    assert contents(tmp_path / "mine") == contents(cached)


def test_less_memory_means_fewer_sequences_in_a_pass(home, tmp_path) -> None:
    less = cache_activations.smaller(caching(home, tmp_path))
    assert less is not None and less.model_batch == 4
    assert cache_activations.smaller(caching(home, tmp_path, model_batch=1)) is None
    assert cache_activations.smaller(caching(home, tmp_path, model_batch=None)).model_batch == UNSETTLED_ROWS // 2


def test_what_one_attempt_settled_holds_for_the_next_and_for_a_repair(home, tmp_path, monkeypatch) -> None:
    """Whatever a trial would say now: precision and rows leave their mark in the last bits."""

    def trial(rows: int, tokens_per_second: float) -> dict[str, Any]:
        return {"rows": rows, "tokens_per_second": {str(rows): tokens_per_second}}

    monkeypatch.setattr("jobs.ml.calibration.precisions", lambda device: ["float32", "bfloat16"])
    monkeypatch.setattr(
        "jobs.ml.calibration.measure", lambda model, *_: trial(4, 2.0 if "b" in str(model.dtype) else 1)
    )
    mine = caching(home, tmp_path / "mine", dtype="auto", model_batch=None)
    with pytest.raises(Paused):
        cache_activations.run(mine, Wishful(cache_activations, "pause", 25))
    (home / "model" / FILE).unlink()
    monkeypatch.setattr("jobs.ml.calibration.measure", lambda *_: pytest.fail("tried again"))
    result = cache_activations.run(mine, Context(1, 2, cache_activations.STAGES))
    assert (result["dtype"], result["model_batch"], result["measured"]["dtype"]) == ("bfloat16", 4, "bfloat16")
    assert cache_activations.smaller(mine).model_batch == 2
    before = contents(tmp_path / "mine")
    next((tmp_path / "mine").glob("00-*")).unlink()
    cache_activations.run(mine, Context(1, 3, cache_activations.STAGES))
    assert contents(tmp_path / "mine") == before
    again = caching(home, tmp_path / "again", dtype=result["dtype"], model_batch=result["model_batch"])
    cache_activations.run(again, Context(1, 1, cache_activations.STAGES))
    assert contents(tmp_path / "again") == before


def test_what_the_engine_refuses_is_told_with_a_code_and_a_hint() -> None:
    assert classify(BeyondFloat16("x", "Store it as bfloat16.")).code == "VALIDATION"
    assert classify(DiskFull("x")).code == "DISK_FULL"
    assert classify(CacheMissing("x", "Make it again.")).hint == "Make it again."


# ---- training from a cache


def test_an_sae_from_a_cache_is_as_good_as_one_trained_on_the_fly(home, cached, tmp_path) -> None:
    fresh = train_sae.run(training(home, tmp_path / "fresh"), Context(1, 1, train_sae.STAGES))
    told = train_sae.run(training(home, tmp_path / "cached", caches=[str(cached)]), Context(1, 1, train_sae.STAGES))
    assert told["saes"][0]["fvu"] == pytest.approx(fresh["saes"][0]["fvu"], rel=0.1)
    assert told["epochs"] == pytest.approx(fresh["epochs"])
    assert told["saes"][0]["metrics"]["tokens"] == fresh["saes"][0]["metrics"]["tokens"]


@pytest.mark.slow
def test_training_from_a_cache_is_paused_and_killed_and_ends_with_the_same_weights(home, cached, tmp_path) -> None:
    def mine(name: str, **changes: Any) -> train_sae.Params:
        return training(home, tmp_path / name, caches=[str(cached)], tokens=3000, **changes)

    train_sae.run(mine("through"), Context(1, 1, train_sae.STAGES))
    with pytest.raises(Paused):
        train_sae.run(mine("broken"), Wishful(train_sae, "pause", 20))
    assert checkpoint.checkpoints(tmp_path / "broken" / "checkpoints")
    assert killed_at(5, "write_json", train_once, mine("broken", checkpoint_seconds=0.0))
    train_sae.run(mine("broken"), Context(1, 3, train_sae.STAGES))
    assert (tmp_path / "broken" / WEIGHTS).read_bytes() == (tmp_path / "through" / WEIGHTS).read_bytes()


def test_training_does_not_load_the_model_before_it_evaluates(home, cached, tmp_path, monkeypatch) -> None:
    stages: list[str] = []
    ctx = Context(1, 1, train_sae.STAGES)

    def load(*arguments: Any) -> Any:
        stages.append(ctx.snapshot.stage)
        return load_model(*arguments)

    monkeypatch.setattr("jobs.ml.training.load_model", load)
    train_sae.run(training(home, tmp_path / "run", caches=[str(cached)]), ctx)
    assert stages == ["evaluate"]


def test_several_caches_are_mixed_and_the_manifest_says_so(home, cached, tmp_path) -> None:
    cache_activations.run(caching(home, tmp_path / "less", tokens=2000), Context(1, 1, cache_activations.STAGES))
    folders = [str(cached), str(tmp_path / "less")]
    mine = training(home, tmp_path / "run", caches=folders, cache_weights=[9, 1])
    train_sae.run(mine, Context(1, 1, train_sae.STAGES))
    said = store.read_manifest(tmp_path / "run" / "sae")["activations"]["caches"]
    assert [cache["tokens_per_batch"] for cache in said] == [90, 10]
    with pytest.raises(InvalidInput, match="one weight for each cache"):
        training(home, tmp_path, caches=folders, cache_weights=[1.0])


def test_a_training_whose_cache_is_gone_says_the_way_out(home, tmp_path) -> None:
    mine = training(home, tmp_path / "run", caches=[str(tmp_path / "evicted")])
    with pytest.raises(CacheMissing) as error:
        train_sae.run(mine, Context(1, 1, train_sae.STAGES))
    failure = classify(error.value)
    assert "was evicted, deleted" in failure.message and "make it again" in failure.hint


def test_a_repaired_cache_is_the_same_to_a_training_that_goes_on(home, cached, tmp_path) -> None:
    mine = training(home, tmp_path / "run", caches=[str(cached)])
    with pytest.raises(Paused):
        train_sae.run(mine, Wishful(train_sae, "pause", 60))
    name = next(cached.glob("00-*")).name
    (cached / name).unlink()
    cache_activations.run(caching(home, cached), Context(1, 2, cache_activations.STAGES))
    assert load_file(cached / name)["activations"].shape[1] == 32
    ctx = Context(1, 2, train_sae.STAGES)
    train_sae.run(mine, ctx)
    assert min(ctx.metrics) > 10  # it did not begin anew
