import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from jobs.ml import calibration
from jobs.ml.calibration import FILE, ROWS, Setting, deepest, fastest, keep, load_calibrated, measure, read
from jobs.ml.meter import CLEAR, Meter
from jobs.ml.sites import UnknownSite, resolve
from tests.ml.tiny import save_model, tiny_model

SITE = "blocks.1.hook_resid_post"
SETTING = Setting("cpu", "float32", 1, 16, "1")
FIGURES = {"rows": 8, "tokens_per_second": {"8": 100.0}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tiny_model("llama"), tmp_path)


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(calibration, "SECONDS", 0.1)


def load(folder: Path, **changes):
    wanted = {"site": SITE, "context_length": 16, "device": "cpu", "dtype": "float32"} | changes
    return load_calibrated(folder, **wanted)


@pytest.mark.usefixtures("quick")
def test_the_fewest_rows_whose_rate_is_close_to_the_best_are_chosen(monkeypatch) -> None:
    rates = {1: 50.0, 2: 90.0, 4: 98.0, 8: 100.0, 16: 99.0, 32: 70.0, 64: 60.0}
    monkeypatch.setattr(calibration, "seconds", lambda model, site, ids: ids.numel() / rates[len(ids)])
    model = tiny_model("llama")
    found = measure(model, resolve(model, SITE), 512)
    assert found["rows"] == 4
    assert found["tokens_per_second"] == {str(rows): value for rows, value in rates.items()}
    short = measure(model, resolve(model, SITE), 16)
    assert (short["rows"], list(short["tokens_per_second"])) == (32, ["32", "64"]), "passes of 512 tokens or more"


@pytest.mark.usefixtures("quick")
def test_what_the_memory_does_not_hold_ends_the_trial(monkeypatch) -> None:
    def seconds(model, site, ids) -> float:
        if len(ids) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return 1.0

    monkeypatch.setattr(calibration, "seconds", seconds)
    model = tiny_model("llama")
    assert measure(model, resolve(model, SITE), 512)["tokens_per_second"] == {"1": 512.0, "2": 1024.0}
    monkeypatch.setattr(calibration, "seconds", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure(model, resolve(model, SITE), 16)


def test_a_trial_of_a_slow_model_ends_after_what_is_short(monkeypatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(calibration, "seconds", lambda *_: 1.0)
    monkeypatch.setattr(calibration.time, "monotonic", lambda: next(clock))
    model = tiny_model("llama")
    assert list(measure(model, resolve(model, SITE), 512)["tokens_per_second"]) == ["1"]


@pytest.mark.usefixtures("quick")
def test_the_trial_is_kept_with_the_model_and_found_by_the_next_run(folder, monkeypatch) -> None:
    model, dtype, rows = load(folder)
    [entry] = read(folder)
    assert (entry["rows"], dtype) == (rows, "float32") and rows in ROWS
    assert entry["setting"] | {"device": "", "threads": 1} == {
        "device": "", "dtype": "float32", "threads": 1, "context_length": 16, "depth": "1",
    }  # fmt: skip
    assert min(entry["tokens_per_second"].values()) > 0
    monkeypatch.setattr(calibration, "measure", lambda *_: pytest.fail("measured again"))
    assert load(folder)[2] == rows
    assert load(folder, site="blocks.1.hook_z.3")[2] == rows, "as deep"


@pytest.mark.usefixtures("quick")
def test_other_depths_contexts_and_precisions_are_tried_for_themselves(folder) -> None:
    for changes in ({}, {"site": "blocks.0.hook_z"}, {"context_length": 8}, {"dtype": "bfloat16"}, {}):
        load(folder, **changes)
    load(folder, site="hook_embed")
    load(folder, site="module:model.layers.2.mlp")
    assert [entry["setting"]["depth"] for entry in read(folder)] == ["1", "0", "1", "1", "hook_embed", "2"]


@pytest.mark.usefixtures("quick")
def test_nothing_is_tried_where_nothing_is_left_open(folder) -> None:
    model, dtype, rows = load(folder, dtype="bfloat16", rows=3)
    assert (model.dtype, dtype, rows) == (torch.bfloat16, "bfloat16", 3)
    assert not (folder / FILE).exists()


@pytest.mark.usefixtures("quick")
def test_a_cpu_computes_in_bfloat16_only_where_that_was_measured_to_be_faster(folder, monkeypatch) -> None:
    monkeypatch.setattr(calibration, "precisions", lambda device: ["float32", "bfloat16"])
    for quicker, chosen in ((0.5, "float32"), (1.1, "float32"), (3.0, "bfloat16")):
        monkeypatch.setattr(
            calibration,
            "measure",
            lambda model, *_, quicker=quicker: {
                "rows": 4,
                "tokens_per_second": {"4": quicker if model.dtype == torch.bfloat16 else 1.0},
            },
        )
        (folder / FILE).unlink(missing_ok=True)
        for _ in range(2):  # measured, and found
            model, dtype, rows = load(folder, dtype="auto")
            assert (dtype, rows) == (chosen, 4)
            assert model.dtype == getattr(torch, chosen)
    assert fastest({"bfloat16": FIGURES}) == "bfloat16"  # the only one


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"a": 1}', '[{"setting": {}}]'])
def test_a_damaged_file_is_written_anew(folder, damage) -> None:
    (folder / FILE).write_text(damage)
    load(folder)
    assert len(json.loads((folder / FILE).read_text())) == len(read(folder)) == 1


@pytest.mark.parametrize(
    ("sites", "last"),
    [
        (["blocks.1.hook_z", "blocks.11.hook_z", "hook_embed"], "blocks.11.hook_z"),
        (["blocks.1.hook_z", "module:model.layers.2.mlp"], "module:model.layers.2.mlp"),
        (["hook_embed", "blocks.0.hook_z"], "blocks.0.hook_z"),
        (["module:lm_head", "blocks.3.hook_z"], "module:lm_head"),
    ],
)
def test_several_sites_are_as_deep_as_the_last_block_that_one_is_in(sites, last) -> None:
    assert deepest(sites) == last


@pytest.mark.skipif(torch.cuda.is_available() or not CLEAR.exists(), reason="peaks of the process, as Linux has them")
@pytest.mark.usefixtures("quick")
def test_what_a_trial_takes_is_not_counted_as_memory_of_the_work(folder, monkeypatch) -> None:
    def seconds(*_) -> float:
        torch.ones(2**26)
        return 1.0

    monkeypatch.setattr(calibration, "seconds", seconds)
    meter = Meter()
    load(folder)
    assert (meter.peak_bytes() or 0) < 2**27 < 4 * 2**26


def test_of_two_runs_that_try_at_once_the_later_takes_what_the_earlier_kept(tmp_path) -> None:
    assert keep(tmp_path, SETTING, FIGURES) == keep(tmp_path, SETTING, {**FIGURES, "rows": 64})
    assert [entry["rows"] for entry in read(tmp_path)] == [8]


def test_no_entry_is_lost_where_several_write(tmp_path) -> None:
    settings = [Setting("cpu", "float32", 1, context, "1") for context in range(12)]
    with ThreadPoolExecutor(4) as writers:  # each holds a lock of its own, as processes do
        list(writers.map(lambda setting: keep(tmp_path, setting, FIGURES), settings))
    assert sorted(entry["setting"]["context_length"] for entry in read(tmp_path)) == list(range(12))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.usefixtures("quick")
def test_a_site_that_is_none_is_found_before_anything_is_tried(folder) -> None:
    with pytest.raises(UnknownSite):
        load(folder, site="blocks.1.hook_y")
    assert not (folder / FILE).exists()
