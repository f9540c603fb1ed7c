"""The kinds over the engine, from files to files, with the real context and no database."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from jobs.context import Context
from jobs.errors import Cancelled, InvalidInput, Paused, Stopped, classify
from jobs.kinds import load_kind, make_params, scan_features, tokenize, train_sae
from jobs.ml import checkpoint, store
from jobs.ml.calibration import ROWS
from jobs.ml.documents import DocumentWriter
from jobs.ml.evidence import Evidence
from jobs.ml.saelens import load_sae, sites_of
from jobs.ml.tokens import TokenShards
from tests.files import contents
from tests.ml.tiny import documents, killed_at, save_model, tiny_model

SITE = "blocks.1.hook_resid_post"


class Wishful(Context):
    """Wishes for something after so many questions."""

    def __init__(self, kind: ModuleType, wish: str = "", after: int = 0) -> None:
        super().__init__(1, 1, kind.STAGES)
        self.later, self.left = wish, after

    def wish(self) -> str | None:
        self.hear()
        return super().wish()

    def check(self) -> None:
        self.hear()
        super().check()

    def hear(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.wished = self.later


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a dataset, its tokens, a trained SAE and its scan."""
    home = tmp_path_factory.mktemp("home")
    save_model(tiny_model("llama"), home / "model")
    (home / "dataset").mkdir()
    writer = DocumentWriter(home / "dataset")
    for text in documents(400):
        writer.add(text)
    writer.finish_shard()
    for kind, name in ((tokenize, "tokens"), (train_sae, "training"), (scan_features, "scan")):
        kind.run(params(kind, home, name), Context(1, 1, kind.STAGES))
    return home


def params(kind: ModuleType, home: Path, name: str, **changes: Any) -> Any:
    folders = {
        "model_folder": home / "model", "dataset_folder": home / "dataset", "tokens_folder": home / "tokens",
        "sae_folder": home / "training" / "sae", "folder": home / name,
    }  # fmt: skip
    if kind is train_sae:
        folders["sae_folder"] = home / name / "sae"
    values = {name: str(path) for name, path in folders.items()} | {
        "context_length": 16, "held_out": 0.3, "site": SITE, "width": 48, "k": 4, "tokens": 4000, "batch_tokens": 100,
        "buffer_tokens": 1000, "lr": 2e-3, "model_name": "tiny", "evaluation_tokens": 800,
        "model_batch": 8,
    }  # fmt: skip
    values |= changes
    values["reads"] = [values["site"]]
    if kind is train_sae and "saes" not in changes:
        own = {"architecture": "topk", "lr": None, "l1_coefficient": None} | values
        options = {name: own[name] for name in ("k", "l1_coefficient") if own[name] is not None}
        values["saes"] = [
            {"folder": own["sae_folder"], "reads": [own["site"]], "options": options}
            | {name: own[name] for name in ("architecture", "width", "lr")}
        ]
    known = {field.name for field in dataclasses.fields(kind.Params)}
    return make_params(kind, {key: value for key, value in values.items() if key in known})


def test_tokenizing_gives_the_statistics_that_the_page_shows(home) -> None:
    result = tokenize.run(params(tokenize, home, "tokens"), Context())
    assert result["documents"] == 400
    assert result["train"]["tokens"] == TokenShards(home / "tokens").n_tokens
    assert result["held_out"]["tokens"] == TokenShards(home / "tokens", "held_out").n_tokens > 0


def test_training_gives_the_figures_and_a_folder_that_can_be_read(home) -> None:
    ctx = Context(1, 1, train_sae.STAGES)
    told = train_sae.run(params(train_sae, home, "again"), ctx)
    [one] = told["saes"]
    assert (one["d_in"], one["width"], told["steps"], told["tokens"]) == (32, 48, 40, 4000)
    assert 0 < one["fvu"] < 1
    assert 0 < one["l0"] <= 4
    assert one["evaluated_tokens"] == one["metrics"]["tokens"] > 500
    assert one["ce_recovered"] is not None
    assert not told["stopped_early"]
    assert sorted(ctx.metrics) == [10, 20, 30, 40]
    names = {"loss", "fvu", "l0", "dead", "lr", "grad_norm"}
    assert {f"{name}.0" for name in names} | {"tokens_per_second"} <= ctx.metrics[40].keys()
    sae = load_sae(home / "again" / "sae")
    assert (sae.architecture, sae.width, sae.is_folded) == ("topk", 48, True)
    manifest = store.read_manifest(home / "again" / "sae")
    measured, shared = told.pop("measured"), {name: value for name, value in told.items() if name != "saes"}
    assert manifest["result"] == {**shared, **one}
    assert measured["load_seconds"] > 0 and measured["weight_bytes"] == 4 * tiny_model("llama").num_parameters()
    assert measured["runs"]["8"]["tokens"] == 4000
    assert manifest["files"]["sae_weights.safetensors"]["sha256"]
    assert not (home / "again" / "checkpoints").exists()


def test_scanning_gives_the_counts_and_the_evidence(home) -> None:
    result = scan_features.run(params(scan_features, home, "scan"), Context())
    assert result["features"] == 48 == result["alive"] + result["dead"]
    assert result["tokens"] == Evidence(home / "scan").n_tokens
    assert result["seconds"] >= 0


@pytest.mark.parametrize(("kind", "name"), [(tokenize, "tokens"), (train_sae, "training"), (scan_features, "scan")])
def test_running_a_finished_kind_again_changes_nothing(home, kind, name) -> None:
    folder = home / name
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    one = kind.run(params(kind, home, name), Context(1, 2, kind.STAGES))
    two = kind.run(params(kind, home, name), Context(1, 3, kind.STAGES))
    of_this_run = {"seconds": 0, "measured": {}}
    assert one | of_this_run == two | of_this_run
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(("wish", "raised"), [("pause", Paused), ("cancel", Cancelled), ("stop", Stopped)])
def test_training_that_is_interrupted_keeps_a_checkpoint_and_ends_with_the_same_weights(
    home, tmp_path, wish, raised
) -> None:
    mine = params(train_sae, home, "training", folder=str(tmp_path), sae_folder=str(tmp_path / "sae"))
    for after in (16, 20, 14):
        with pytest.raises(raised):
            train_sae.run(mine, Wishful(train_sae, wish, after))
        assert checkpoint.checkpoints(tmp_path / "checkpoints")
    train_sae.run(mine, Context(1, 2, train_sae.STAGES))
    weights = "sae_weights.safetensors"
    assert (tmp_path / "sae" / weights).read_bytes() == (home / "training" / "sae" / weights).read_bytes()


def test_a_pause_in_the_evaluation_does_not_train_again(home, tmp_path) -> None:
    mine = params(train_sae, home, "training", folder=str(tmp_path), sae_folder=str(tmp_path / "sae"))
    ctx = Wishful(train_sae, "pause", 10**9)
    at, ctx.at = ctx.at, lambda done: (at(done), setattr(ctx, "left", 0 if ctx.snapshot.stage == "evaluate" else 10**9))  # type: ignore[method-assign,assignment]
    with pytest.raises(Paused):
        train_sae.run(mine, ctx)
    assert checkpoint.checkpoints(tmp_path / "checkpoints")[-1].name == "step-000000040"
    second = Context(1, 2, train_sae.STAGES)
    assert train_sae.run(mine, second)["steps"] == 40
    assert not second.metrics  # no step was taken


def test_finish_ends_early_with_an_sae_and_says_so(home, tmp_path) -> None:
    mine = params(train_sae, home, "training", folder=str(tmp_path), sae_folder=str(tmp_path / "sae"))
    told = train_sae.run(mine, Wishful(train_sae, "finish", 25))
    assert told["stopped_early"]
    assert 0 < told["steps"] < 40
    assert told["tokens"] == 100 * told["steps"]
    assert load_sae(tmp_path / "sae").width == 48


def test_finish_before_the_first_step_waits_for_it(home, tmp_path) -> None:
    mine = params(train_sae, home, "training", folder=str(tmp_path), sae_folder=str(tmp_path / "sae"))
    assert train_sae.run(mine, Wishful(train_sae, "finish", 0))["steps"] == 1


@pytest.mark.parametrize(("kind", "name"), [(tokenize, "tokens"), (scan_features, "scan")])
def test_an_interrupted_pass_ends_with_the_same_bytes(home, tmp_path, monkeypatch, kind, name) -> None:
    monkeypatch.setattr("jobs.ml.pieces.BATCH", 5000)
    mine = params(kind, home, name, folder=str(tmp_path / "mine"))
    with pytest.raises(Paused):
        kind.run(mine, Wishful(kind, "pause", 5))
    kind.run(mine, Context(1, 2, kind.STAGES))
    assert contents(tmp_path / "mine") == contents(home / name)


def train_once(params: train_sae.Params) -> None:
    train_sae.run(params, Context())


def test_training_killed_with_no_warning_ends_with_the_same_weights(home, tmp_path) -> None:
    folders = {"folder": str(tmp_path), "sae_folder": str(tmp_path / "sae")}
    mine = params(train_sae, home, "training", **folders, checkpoint_seconds=0.0)
    assert killed_at(20, "write_json", train_once, mine)
    assert len(checkpoint.checkpoints(tmp_path / "checkpoints")) == 2
    train_sae.run(mine, Context(1, 2, train_sae.STAGES))
    weights = "sae_weights.safetensors"
    assert (tmp_path / "sae" / weights).read_bytes() == (home / "training" / "sae" / weights).read_bytes()


def test_less_memory_means_smaller_parts_of_the_same_batches(home) -> None:
    first = params(train_sae, home, "training")
    less = train_sae.smaller(first)
    assert (less.micro_batch_tokens, less.model_batch, less.batch_tokens) == (50, 4, 100)
    again = less
    for _ in range(10):
        again = train_sae.smaller(again) or again
    assert (again.micro_batch_tokens, again.model_batch) == (1, 1)
    assert train_sae.smaller(again) is None
    assert scan_features.smaller(params(scan_features, home, "scan")).model_batch == 4


OPEN = {"model_batch": None, "dtype": "auto"}


def test_what_a_training_leaves_open_is_settled_once_for_all_its_attempts(home, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("jobs.ml.calibration.SECONDS", 0.1)
    run = params(train_sae, home, "x", folder=str(tmp_path), sae_folder=str(tmp_path / "sae"), **OPEN)
    with pytest.raises(Paused):
        train_sae.run(run, Wishful(train_sae, "pause", 20))
    begun = store.read_json(tmp_path / "begun.json")
    assert begun["model_batch"] in ROWS and begun["dtype"] in ("float32", "bfloat16")
    other = {"float32": "bfloat16", "bfloat16": "float32"}[begun["dtype"]]
    store.write_json(tmp_path / "begun.json", {**begun, "model_batch": 3, "dtype": other})
    told = train_sae.run(run, Context(1, 2, train_sae.STAGES))
    assert (told["model_batch"], told["dtype"]) == (3, other), "not calibrated anew"
    assert train_sae.smaller(run).model_batch == 1
    assert train_sae.smaller(dataclasses.replace(run, folder=str(tmp_path / "new"))).model_batch == 4


def test_what_a_scan_leaves_open_is_settled_once_for_all_its_attempts(home, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("jobs.ml.calibration.SECONDS", 0.1)
    scan = params(scan_features, home, "x", folder=str(tmp_path / "scan"), **OPEN)
    with pytest.raises(Paused):
        scan_features.run(scan, Wishful(scan_features, "pause", 2))
    plan = store.read_json(tmp_path / "scan" / "chunks" / "plan.json")
    store.write_json(tmp_path / "scan" / "chunks" / "plan.json", {**plan, "model_batch": 3})
    told = scan_features.run(scan, Context(1, 2, scan_features.STAGES))
    assert (told["model_batch"], told["dtype"]) == (3, plan["dtype"])
    assert scan_features.smaller(scan).model_batch == 1


def test_a_run_in_half_precision_says_so_and_does_not_take_up_one_in_full(home, tmp_path) -> None:
    mine = params(train_sae, home, "x", folder=str(tmp_path), sae_folder=str(tmp_path / "sae"))
    with pytest.raises(Paused):
        train_sae.run(mine, Wishful(train_sae, "pause", 25))
    ctx = Context(1, 2, train_sae.STAGES)
    said: list[str] = []
    ctx.log = said.append  # type: ignore[method-assign]
    told = train_sae.run(dataclasses.replace(mine, dtype="bfloat16"), ctx)
    assert (told["dtype"], store.read_manifest(tmp_path / "sae")["result"]["dtype"]) == ("bfloat16", "bfloat16")
    assert not [line for line in said if "goes on" in line]
    assert [line for line in said if "begins anew" in line]


def test_a_run_goes_on_with_less_memory_where_it_was(home, tmp_path) -> None:
    mine = params(train_sae, home, "training", folder=str(tmp_path), sae_folder=str(tmp_path / "sae"))
    with pytest.raises(Paused):
        train_sae.run(mine, Wishful(train_sae, "pause", 30))
    reached = checkpoint.checkpoints(tmp_path / "checkpoints")[-1].name
    ctx = Wishful(train_sae)
    said = []
    ctx.log = said.append  # type: ignore[method-assign]
    train_sae.run(train_sae.smaller(mine), ctx)
    assert said[2:3] == [f"goes on from step {int(reached.removeprefix('step-'))} of 40"] and not [
        line for line in said if "anew" in line
    ]


@pytest.mark.parametrize(
    ("kind", "changes", "field"),
    [
        (train_sae, {"width": 0}, "width"), (train_sae, {"k": 49}, "k"), (train_sae, {"k": 2.5}, "k"),
        (train_sae, {"architecture": "relu"}, "architecture"), (train_sae, {"lr": -1.0}, "lr"),
        (train_sae, {"architecture": "standard"}, "k"), (train_sae, {"folder": "here"}, "folder"),
        (train_sae, {"architecture": "transcoder"}, "writes"), (train_sae, {"architecture": "crosscoder"}, "reads"),
        (train_sae, {"saes": []}, "saes"), (train_sae, {"selection": "int8"}, "selection"),
        (train_sae, {"model_batch": 0}, "model_batch"), (train_sae, {"dtype": "int3"}, "dtype"),
        (scan_features, {"dtype": ""}, "dtype"), (scan_features, {"model_batch": -1}, "model_batch"),
        (tokenize, {"held_out": 1.0}, "held_out"),
        (tokenize, {"context_length": 1}, "context_length"), (tokenize, {"seed": -1}, "seed"),
        (scan_features, {"tokens": 0}, "tokens"), (scan_features, {"sae_folder": "x"}, "sae_folder"),
    ],
)  # fmt: skip
def test_parameters_that_cannot_be_are_refused_by_name(home, kind, changes, field) -> None:
    with pytest.raises(InvalidInput) as refused:
        params(kind, home, "x", **changes)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("kind", "changes", "message", "code"),
    [
        (tokenize, {"context_length": 65}, "a context of 65 tokens is more than the model's 64", "VALIDATION"),
        (tokenize, {"context_length": 60, "dataset_folder": "/nowhere"}, "holds no documents", "NOT_FOUND"),
        (train_sae, {"site": "blocks.7.hook_z"}, "no site of this model", "VALIDATION"),
        (train_sae, {"site": "module:model.layers.1.mpl"}, "has no module 'model.layers.1.mpl'", "VALIDATION"),
        (train_sae, {"model_folder": "/nowhere"}, "has no config.json", "CORRUPT_DATA"),
        (train_sae, {"lr": 1e30}, "stopped being a finite number", "VALIDATION"),
        (scan_features, {"sae_folder": "/nowhere"}, "has no cfg.json", "CORRUPT_DATA"),
        (scan_features, {"site": "blocks.9.hook_z"}, "no site of this model", "VALIDATION"),
    ],
)
def test_what_goes_wrong_is_told_in_words_with_a_code(home, tmp_path, kind, changes, message, code) -> None:
    with pytest.raises(Exception, match=message) as failed:
        kind.run(params(kind, home, "x", **{"folder": str(tmp_path / "x")} | changes), Context(1, 1, kind.STAGES))
    assert classify(failed.value).code == code


def test_a_dataset_that_was_changed_since_is_not_tokenized(home, tmp_path) -> None:
    shutil.copytree(home / "dataset", tmp_path / "dataset")
    store.write_manifest(tmp_path / "dataset", ["documents-00000.parquet"])
    with (tmp_path / "dataset" / "documents-00000.parquet").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=r"documents-00000\.parquet has [\d,]+ bytes instead of") as failed:
        tokenize.run(params(tokenize, home, "x", dataset_folder=str(tmp_path / "dataset")), Context())
    assert classify(failed.value).code == "CORRUPT_DATA"


def test_an_sae_of_another_width_than_the_site_is_refused(home, tmp_path) -> None:
    save_model(tiny_model("qwen3"), tmp_path / "wide")
    mine = params(scan_features, home, "x", site="blocks.1.hook_z", model_folder=str(tmp_path / "wide"))
    with pytest.raises(ValueError, match="has 48 dimensions, but the SAE has 32 there"):
        scan_features.run(mine, Context(1, 1, scan_features.STAGES))


@pytest.mark.parametrize("site", ["hook_embed", "blocks.1.hook_z.2", "module:model.layers.1.mlp.gate_proj"])
def test_any_site_can_be_trained_on_and_scanned(home, tmp_path, site) -> None:
    folders = {"folder": str(tmp_path), "sae_folder": str(tmp_path / "sae")}
    told = train_sae.run(params(train_sae, home, "x", site=site, **folders), Context(1, 1, train_sae.STAGES))
    [one] = told["saes"]
    assert one["ce_recovered"] is not None and one["d_in"] == {"h": 32, "b": 8, "m": 48}[site[0]]
    assert sites_of(tmp_path / "sae") == ([site], [])
    mine = params(scan_features, home, "x", site=site, **folders | {"folder": str(tmp_path / "scan")})
    assert scan_features.run(mine, Context(1, 1, scan_features.STAGES))["alive"] > 0
    assert (Evidence(tmp_path / "scan").array("top_logit_ids") is not None) == (site == "hook_embed")


def test_nothing_held_out_leaves_the_quality_unmeasured_and_says_why(home, tmp_path) -> None:
    tokenize.run(params(tokenize, home, "x", held_out=0.0, folder=str(tmp_path / "tokens")), Context())
    mine = params(
        train_sae,
        home,
        "x",
        folder=str(tmp_path),
        sae_folder=str(tmp_path / "sae"),
        tokens_folder=str(tmp_path / "tokens"),
    )
    told = train_sae.run(mine, Context(1, 1, train_sae.STAGES))
    [one] = told["saes"]
    assert one["fvu"] is one["ce_recovered"] is one["evaluated_tokens"] is None
    assert one["metrics"]["not_measured"] == {"all": "no sequences are held out"}


def test_the_page_that_offers_a_kind_needs_no_torch() -> None:
    code = (
        "import sys; from jobs.kinds import load_kind; "
        "[load_kind(k) for k in ('tokenize', 'train_sae', 'scan_features')]; "
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", ["tokenize", "train_sae", "scan_features"])
def test_each_kind_has_what_the_runner_asks_for(name) -> None:
    kind = load_kind(name)
    assert kind.LABEL
    assert kind.QUEUE in {"cpu", "gpu"}
    assert kind.RESUMABLE
    assert all(weight > 0 for weight in kind.STAGES.values())
    assert kind.ON_SUCCESS.startswith("mistudio.ingest.")


def test_every_stage_that_is_entered_is_one_of_the_kinds_and_the_percentage_never_falls(home, tmp_path) -> None:
    for kind, name in ((tokenize, "t"), (train_sae, "r"), (scan_features, "s")):
        ctx = Context(1, 1, kind.STAGES)
        seen, percent = [], []
        recount = ctx._recount

        def watch(ctx=ctx, seen=seen, percent=percent, recount=recount) -> None:
            recount()
            seen.append(ctx.snapshot.stage)
            percent.append(ctx.snapshot.percent)

        ctx._recount = watch  # type: ignore[method-assign]
        kind.run(params(kind, home, name, folder=str(tmp_path / name)), ctx)
        assert list(dict.fromkeys(seen)) == list(kind.STAGES)
        assert percent == sorted(percent)


def test_seeds_are_set_for_torch_as_well(home, tmp_path) -> None:
    from jobs.ml.determinism import set_up

    set_up(11)
    a = torch.rand(3)
    set_up(11)
    assert torch.equal(torch.rand(3), a)
