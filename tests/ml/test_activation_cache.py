import fcntl
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jobs.ml import cache_layout, cached_activations, disk, store
from jobs.ml.activation_cache import BeyondFloat16, InUseElsewhere, decode, encode, write_cache
from jobs.ml.activations import NonFiniteActivations
from jobs.ml.cache_layout import cache_bytes, rows_per_shard, site_file
from jobs.ml.cached_activations import CachedActivations, CacheDoesNotFit, CacheMissing, CacheReader
from jobs.ml.disk import DiskFull
from jobs.ml.sites import UnknownSite, capture
from jobs.ml.tokens import TokenShards
from tests.files import contents, flip
from tests.ml.tiny import killed_at, tiny_model

SITE, OTHER = "blocks.1.hook_resid_post", "blocks.2.hook_mlp_out"
T = 16
EVERY = 10**9


@pytest.fixture(autouse=True)
def small_shards(monkeypatch) -> None:
    monkeypatch.setattr(cache_layout, "SHARD_TOKENS", 1000)


@pytest.fixture(scope="module")
def shards(tokens) -> TokenShards:
    return TokenShards(tokens)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def once_written(model, shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("once") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_layout, "SHARD_TOKENS", 1000)
        write(model, shards, folder)
    return folder


@pytest.fixture
def written(once_written, tmp_path) -> Path:
    """A cache of two sites in float32."""
    return Path(shutil.copytree(once_written, tmp_path / "cache"))


def write(model, shards, folder, sites=(SITE, OTHER), **options) -> dict:
    known = {"tokens": EVERY, "stored": "float32", "model_identity": "tiny"}
    return write_cache(lambda: model, list(sites), shards, folder, **{**known, **options})[0]


def every_activation(model, shards, site=SITE, skip_special=True) -> torch.Tensor:
    ids, special = shards.rows(range(shards.n_sequences))
    x = torch.cat([capture(model, site, part) for part in torch.from_numpy(ids).long().split(8)]).flatten(0, 1)
    return x[~torch.from_numpy(special).flatten()] if skip_special else x


def stored_rows(folder: Path, site=SITE, number=0) -> torch.Tensor:
    n = len(store.read_manifest(folder)["shards"])
    return torch.cat([decode(**load_file(folder / site_file(number, site, shard))) for shard in range(n)])


def sorted_rows(x: torch.Tensor) -> np.ndarray:
    return x.numpy()[np.lexsort(x.numpy().T[::-1])]


# ---- what is written


@pytest.mark.parametrize("skip_special", [True, False])
def test_what_is_stored_is_what_the_model_computes(model, shards, tmp_path, skip_special) -> None:
    manifest = write(model, shards, tmp_path, skip_special=skip_special)
    for number, site in enumerate((SITE, OTHER)):
        wanted = every_activation(model, shards, site, skip_special)
        assert torch.equal(stored_rows(tmp_path, site, number), wanted)
        assert manifest["tokens"] == len(wanted) == sum(manifest["shards"])
    assert len(manifest["shards"]) > 3


@pytest.mark.parametrize(("stored", "error"), [("bfloat16", 2**-8), ("float16", 2**-11), ("float32", 0.0)])
def test_a_smaller_type_is_off_by_its_rounding_alone(model, shards, tmp_path, stored, error) -> None:
    manifest = write(model, shards, tmp_path, [SITE], stored=stored)
    wanted = every_activation(model, shards)
    assert ((stored_rows(tmp_path) - wanted).abs() <= error * wanted.abs() + 1e-7).all()
    measured = ((stored_rows(tmp_path) - wanted).square().sum() / wanted.square().sum()).item()
    assert manifest["statistics"][SITE]["error"] == pytest.approx(measured, rel=1e-3, abs=1e-12)
    assert (measured > 0) == (stored != "float32")


def test_int8_is_off_by_half_a_step_of_its_tokens_scale(model, shards, tmp_path) -> None:
    manifest = write(model, shards, tmp_path, [SITE], stored="int8")
    wanted = every_activation(model, shards)
    off, step = (stored_rows(tmp_path) - wanted).abs(), wanted.abs().amax(1, keepdim=True) / 127
    assert (off <= 0.5001 * step).all()
    assert 0 < manifest["statistics"][SITE]["error"] < 1e-3
    files = [file["bytes"] for name, file in manifest["files"].items() if not name.startswith("shard")]
    assert sum(files) < cache_bytes([32], "int8", manifest["tokens"])


def test_a_token_of_zeros_stays_zero_in_int8() -> None:
    assert torch.equal(decode(**encode(torch.zeros(2, 4), "int8")), torch.zeros(2, 4))


def test_every_stored_row_leads_back_to_its_token(model, shards, written) -> None:
    n = len(store.read_manifest(written)["shards"])
    found = np.concatenate([store.read_tensor(written / f"shard-{k:05d}.safetensors", "positions") for k in range(n)])
    special = shards.rows(range(shards.n_sequences))[1].reshape(-1)
    assert np.array_equal(found, np.flatnonzero(~special))


def test_the_number_of_tokens_is_rounded_up_to_whole_sequences(model, shards, tmp_path) -> None:
    manifest = write(model, shards, tmp_path, tokens=33)
    assert manifest["plan"]["sequences"] == 3
    assert manifest["tokens"] == int(shards.kept_per_sequence()[:3].sum())


def test_held_out_sequences_can_be_kept_too(model, tokens, tmp_path) -> None:
    held_out = TokenShards(tokens, "held_out")
    write(model, held_out, tmp_path, [SITE])
    assert torch.equal(stored_rows(tmp_path), every_activation(model, held_out))


def test_a_shard_stays_within_its_limits_of_tokens_and_bytes() -> None:
    assert rows_per_shard([32], "float32", 16, 8) * 16 <= 1000
    assert rows_per_shard([2**20], "float32", 1, 8) == 64  # 2**28 bytes
    assert rows_per_shard([2**20] * 16, "float32", 1, 8) == 16  # 2**30 bytes of all sites
    assert rows_per_shard([2**24], "float32", 2048, 8) == 8  # never less than one forward pass


# ---- what is refused


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_activations_that_are_no_numbers_are_an_error_with_the_site(shards, tmp_path, value) -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(NonFiniteActivations, match=r"blocks.1.hook_resid_post gave .* near sequence 0") as error:
        write(model, shards, tmp_path)
    assert "bfloat16" in error.value.hint


def test_what_is_too_large_for_float16_is_an_error_with_the_way_out_and_bfloat16_takes_it(shards, tmp_path) -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.weight[3] *= 1e7
    with pytest.raises(BeyondFloat16, match=r"blocks.1.hook_resid_post has a value of .* float16 ends at 65,504") as e:
        write(model, shards, tmp_path, [SITE], stored="float16")
    assert "bfloat16" in e.value.hint
    assert write(model, shards, tmp_path, [SITE], stored="bfloat16")["statistics"][SITE]["norm"]["max"] > 65504


def test_a_site_that_is_none_is_an_error_before_anything_is_run(model, shards, tmp_path) -> None:
    with pytest.raises(UnknownSite):
        write(model, shards, tmp_path, ["blocks.9.hook_resid_post"])


def test_a_disk_that_is_too_small_is_an_error_with_the_number_missing(model, shards, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: disk.shutil._ntuple_diskusage(0, 0, 100))
    with pytest.raises(DiskFull, match=r"The cache needs .* are missing"):
        write(model, shards, tmp_path)


def test_two_writers_do_not_meet_in_one_folder(model, shards, written) -> None:
    with (written / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InUseElsewhere):
            write(model, shards, written)
    write(model, shards, written)


# ---- killed, damaged, done again


def in_small_shards(tokens: Path, folder: Path) -> None:
    cache_layout.SHARD_TOKENS = 1000
    write(tiny_model("llama"), TokenShards(tokens), folder)


@pytest.mark.parametrize(
    ("name", "calls", "left"),
    [("write_tensors", 2, 2), ("replacing", 4, 1), ("write_json", 1, 5)],
    ids=["between sites and sums", "in a site", "before the manifest"],
)
def test_a_cache_killed_with_no_warning_goes_on_to_the_same_bytes(
    model, tokens, shards, written, tmp_path, name, calls, left
) -> None:
    broken, passes = tmp_path / "broken", []
    assert killed_at(calls, name, in_small_shards, tokens, broken)
    assert not (broken / "manifest.json").exists()
    kept = list(broken.glob("shard-*.safetensors"))
    assert len(kept) >= min(left, len(store.read_manifest(written)["shards"]))
    write(model, shards, broken, on_progress=lambda done, total: passes.append((done, total)))
    per_shard = rows_per_shard([32, 32], "float32", T, 8) // 8
    assert len(passes) <= -(-shards.n_sequences // 8) - per_shard * (len(kept) - 1)
    if passes:
        assert passes[-1][0] == passes[-1][1] == shards.n_tokens
    assert contents(broken) == contents(written)


def test_a_pause_keeps_the_finished_shards(model, shards, written, tmp_path) -> None:
    def stop(done: int, total: int) -> None:
        if done > 2500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(model, shards, tmp_path / "mine", on_progress=stop)
    assert len(list((tmp_path / "mine").glob("shard-*"))) == 2
    write(model, shards, tmp_path / "mine")
    assert contents(tmp_path / "mine") == contents(written)


def test_a_finished_cache_is_checked_and_left_as_it_is_without_loading_the_model(shards, written) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.iterdir() if path.name != ".lock"}
    shares: list[float] = []
    options = {"tokens": EVERY, "stored": "float32", "model_identity": "tiny", "on_verify": shares.append}
    manifest, read, _ = write_cache(lambda dtype: pytest.fail("loaded"), [SITE, OTHER], shards, written, **options)
    assert manifest == store.read_manifest(written) and read == 0
    assert len(shares) == len(manifest["files"])
    assert before == {path: path.stat().st_mtime_ns for path in written.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize("how", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("file", [site_file(1, OTHER, 2), "shard-00002.safetensors"])
def test_a_damaged_shard_is_named_and_computed_again_alone(model, shards, written, how, file) -> None:
    before, path = contents(written), written / file
    untouched = (written / site_file(0, SITE, 1)).stat().st_mtime_ns
    if how == "delete":
        path.unlink()
    elif how == "flip":
        flip(path, -5)
    else:
        path.write_bytes(path.read_bytes()[:-9])
    named: list[list[str]] = []
    passes: list[int] = []
    write(model, shards, written, on_damage=named.append, on_progress=lambda done, total: passes.append(done))
    assert named == [[file]]
    assert len(passes) == rows_per_shard([32, 32], "float32", T, 8) // 8
    assert contents(written) == before
    assert (written / site_file(0, SITE, 1)).stat().st_mtime_ns == untouched


@pytest.mark.parametrize("change", [{"sites": [OTHER]}, {"tokens": 500}, {"stored": "int8"}, {"model_identity": "x"}])
def test_other_settings_in_the_same_folder_start_clean(model, shards, written, change) -> None:
    manifest = write(model, shards, written, **change)
    assert set(manifest["files"]) | {"manifest.json", "plan.json", ".lock"} == set(contents(written))


def test_passes_that_were_made_smaller_for_want_of_memory_stay_so(model, shards, written) -> None:
    small = write(model, shards, written, model_batch=4)
    assert write(model, shards, written, model_batch=8) == small


# ---- statistics


def test_the_statistics_are_those_of_all_tokens_together(model, shards, written) -> None:
    told = store.read_manifest(written)["statistics"][SITE]
    x = every_activation(model, shards).double()
    norms = x.norm(dim=1)
    assert told["tokens"] == len(x) and told["width"] == 32
    assert told["norm"]["mean"] == pytest.approx(norms.mean().item())
    assert told["norm"]["std"] == pytest.approx(norms.std(correction=0).item(), rel=1e-6)
    assert (told["norm"]["min"], told["norm"]["max"]) == pytest.approx((norms.min().item(), norms.max().item()))
    for q in (1, 25, 50, 99):
        assert told["norm"][f"p{q}"] == pytest.approx(norms.quantile(q / 100).item(), rel=0.024)
    assert told["mean_norm"] == pytest.approx(x.mean(0).norm().item())
    assert told["variance"] == pytest.approx(x.var(0, correction=0).sum().item())
    assert told["std"]["max"] == pytest.approx(x.std(0, correction=0).max().item())
    largest = told["dimensions"][0]
    assert largest["index"] == x.mean(0).abs().argmax().item()
    assert largest["mean"] == pytest.approx(x.mean(0)[largest["index"]].item())
    assert sum(told["histogram"]["counts"]) == len(x)
    edges = 10 ** np.array(told["histogram"]["edges"])
    assert np.histogram(norms, edges)[0].sum() == len(x)


def test_the_tokens_with_the_largest_norms_are_named_by_their_position(model, shards, written) -> None:
    told = store.read_manifest(written)["statistics"][OTHER]["outliers"]
    ids, special = shards.rows(range(shards.n_sequences))
    norms = every_activation(model, shards, OTHER, skip_special=False).double().norm(dim=1).numpy()
    norms[special.reshape(-1)] = 0
    assert [row["norm"] for row in told] == pytest.approx(np.sort(norms)[::-1][:20].tolist())
    assert all(norms[row["position"]] == pytest.approx(row["norm"]) for row in told)


def test_zeros_and_sinks_are_counted(shards, tmp_path) -> None:
    model = tiny_model("llama")
    model.model.embed_tokens.weight[:, :8] = 0
    rare = int(np.bincount(shards.rows(range(shards.n_sequences))[0].reshape(-1), minlength=300)[3:].argmax()) + 3
    model.model.embed_tokens.weight[rare, 8:] = 1000.0
    site = "blocks.0.hook_resid_pre"
    told = write(model, shards, tmp_path, [site])["statistics"][site]
    assert told["zeros"] == pytest.approx(0.25)
    assert told["near_zeros"] > told["zeros"]
    ids, special = shards.rows(range(shards.n_sequences))
    assert told["sinks"] == ((ids == rare) & ~special).sum() > 0


# ---- reading


def reading(folder, shards, **options) -> CachedActivations:
    folders = [folder] if isinstance(folder, Path) else folder
    known = {"batch_tokens": 100, "seed": 1}
    return CachedActivations(folders, SITE, shards, lambda dtype: pytest.fail("loaded"), **{**known, **options})


@pytest.fixture
def small_windows(monkeypatch) -> None:
    monkeypatch.setattr(cached_activations, "WINDOW_BYTES", 2 * 1000 * 32 * 4)


@pytest.mark.parametrize("stored", ["bfloat16", "float32", "int8"])
def test_an_epoch_has_every_token_exactly_once(model, shards, tmp_path, small_windows, stored) -> None:
    n = write(model, shards, tmp_path, [SITE], stored=stored)["tokens"]
    batch = max(size for size in range(1, 300) if n % size == 0)
    source = reading(tmp_path, shards, batch_tokens=batch)
    assert source.tokens_per_epoch == n
    assert len(source.readers[0].windows(0)[1]) >= 2
    got = torch.cat([source.batch(step)[SITE].clone() for step in range(n // batch)])
    assert got.dtype == torch.float32
    assert np.array_equal(sorted_rows(got), sorted_rows(stored_rows(tmp_path)))


def test_a_batch_does_not_depend_on_those_read_before_it(shards, written, small_windows) -> None:
    running = reading(written, shards)
    steps = running.tokens_per_epoch // 100 + 5
    batches = [running.batch(step)[SITE].clone() for step in range(steps)]
    assert all(batch.shape == (100, 32) for batch in batches)
    for step in (0, 7, 13, steps - 5, steps - 1):
        assert torch.equal(reading(written, shards).batch(step)[SITE], batches[step])
    assert torch.equal(running.batch(3)[SITE], batches[3])  # back again


def test_epochs_and_seeds_differ_in_order(shards, written) -> None:
    n = reading(written, shards).tokens_per_epoch
    source = reading(written, shards, batch_tokens=n // 2)
    first = source.batch(0)[SITE].clone()
    assert not torch.equal(first, source.batch(2)[SITE])
    assert not torch.equal(first, reading(written, shards, batch_tokens=n // 2, seed=2).batch(0)[SITE])


def test_a_batch_is_taken_from_all_over_its_window(shards, written) -> None:
    source = reading(written, shards)
    source.batch(0)
    places = source.readers[0]._order[:100]
    assert places.max() - places.min() > 0.9 * source.tokens_per_epoch


def test_the_sample_is_of_the_open_window_and_uses_nothing_up(shards, written) -> None:
    source = reading(written, shards)
    before = source.batch(0)[SITE].clone()
    stored = {row.tobytes() for row in stored_rows(written).numpy()}
    sample = [row.tobytes() for row in source.sample()[SITE].numpy()]
    assert len(sample) > 100 and stored.issuperset(sample)
    assert torch.equal(source.batch(0)[SITE], before)


def test_several_caches_are_mixed_by_weight_in_every_batch(model, tokens, shards, written, tmp_path) -> None:
    other = tmp_path / "other"
    write(model, TokenShards(tokens, "held_out"), other, [SITE])
    mixed = reading([written, other], shards, weights=[3, 1])
    ours = {row.tobytes() for row in stored_rows(written).numpy()}
    theirs = {row.tobytes() for row in stored_rows(other).numpy()}
    for step in (0, 1, 30):
        rows = [row.tobytes() for row in mixed.batch(step)[SITE].numpy()]
        assert sum(row in ours for row in rows[:75]) == 75
        assert sum(row in theirs for row in rows[75:]) == 25
        assert torch.equal(reading([written, other], shards, weights=[3, 1]).batch(step)[SITE], mixed.batch(step)[SITE])
    sizes = [reader.tokens_per_epoch for reader in mixed.readers]
    by_size = reading([written, other], shards)
    assert by_size.parts[0] == pytest.approx(100 * sizes[0] / sum(sizes), abs=1)
    assert mixed.identity() != by_size.identity() != reading(written, shards).identity()


def test_caches_that_do_not_belong_together_are_refused(model, shards, written, tmp_path) -> None:
    write(model, shards, tmp_path / "x", [SITE], model_identity="another")
    with pytest.raises(CacheDoesNotFit, match="different language models: tiny and another"):
        reading([written, tmp_path / "x"], shards)
    write(model, shards, tmp_path / "y", [SITE], skip_special=False)
    with pytest.raises(CacheDoesNotFit, match="different choices of special tokens"):
        reading([written, tmp_path / "y"], shards)
    write(model, shards, tmp_path / "z", [OTHER])
    with pytest.raises(CacheDoesNotFit, match=f"holds {OTHER}, but not {SITE}"):
        reading([written, tmp_path / "z"], shards)
    with pytest.raises(CacheDoesNotFit, match="2 caches need 2 weights above 0"):
        reading([written, written], shards, weights=[1, 0])
    with pytest.raises(CacheDoesNotFit, match="no token of one cache"):
        reading([written, written], shards, weights=[1000, 1])


def test_a_cache_that_is_gone_says_the_way_out(shards, written, tmp_path) -> None:
    with pytest.raises(CacheMissing) as error:
        reading(tmp_path / "nowhere", shards)
    assert "make it again" in error.value.hint
    source = CacheReader(written, [SITE], 100, 0)
    (written / site_file(0, SITE, 0)).unlink()
    with pytest.raises(CacheMissing, match="is gone"):
        source.read(0, {SITE: torch.empty(100, 32)})


def test_nothing_of_a_cache_is_pickled(written) -> None:
    assert {path.suffix for path in written.iterdir()} == {".safetensors", ".json", ""}
    header = json.loads((written / site_file(0, SITE, 0)).read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert header["activations"]["dtype"] == "F32"
