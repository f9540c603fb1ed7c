"""An SAE whose loss stops being a number, beside others that learn."""

import dataclasses
from typing import Any

import pytest

from jobs.context import Context
from jobs.errors import Cancelled, Paused, classify
from jobs.kinds import train_sae
from jobs.ml import checkpoint
from jobs.ml.saelens import load_sae
from jobs.ml.train import Diverged, Trainer
from tests.ml.test_kinds import Wishful, home, params  # noqa: F401  a fixture
from tests.ml.test_train import SITE, ended, of_all, same, several


def hot(architecture: str = "topk"):
    """One that cannot go well: it diverges within the first steps."""
    one = of_all(architecture)
    return dataclasses.replace(one, config=dataclasses.replace(one.config, lr=1e30, lr_warmup_steps=0))


@pytest.fixture(scope="module")
def alone(tokens):
    return [ended(several(tokens, [one]))[0] for one in (of_all("topk"), of_all("jumprelu"))]


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "standard"])
def test_one_that_diverges_leaves_the_others_what_they_are_alone(tokens, alone, architecture) -> None:
    run = several(tokens, [hot(architecture), of_all("topk"), of_all("jumprelu")])
    told = [tick.metrics for tick in run.run() if tick.metrics]
    assert run.finished and len(told) == 6
    first, *others = [checkpoint.state_tensors(trainer) for trainer in run.trainers]
    assert all(same(state, undisturbed) for state, undisturbed in zip(others, alone, strict=True))
    step = run.trainers[0].diverged
    assert step in range(5) and first.keys() == {"bad_step"}
    assert all(metrics[0] == {"diverged": step} for metrics in told)
    assert all("fvu" in metrics[1] and "fvu" in metrics[2] for metrics in told)
    with pytest.raises(Diverged, match=f"finite number at step {step} of 30"):
        run.trainers[0].export()


def test_one_that_diverged_takes_no_more_steps(tokens, monkeypatch) -> None:
    run, taken = several(tokens, [hot(), of_all("topk")]), []
    really = Trainer.gather_gradients
    monkeypatch.setattr(Trainer, "gather_gradients", lambda *args: taken.append(args[0]) or really(*args))
    ended(run)
    assert [taken.count(trainer) for trainer in run.trainers] == [5, 30], "until the first look, and to the end"


def test_a_run_with_one_that_diverged_is_killed_and_resumed_to_the_same_end(tokens, tmp_path, alone) -> None:
    through = several(tokens, [hot(), of_all("topk")])
    told = [(tick.step, tick.metrics) for tick in through.run() if tick.metrics]
    retold = []
    for until in (1, 3, 4, 12, None):
        run = several(tokens, [hot(), of_all("topk")])
        assert checkpoint.resume(run, tmp_path) == (until != 1)
        for tick in run.run():
            if tick.metrics:
                retold.append((tick.step, tick.metrics))
            if until is not None and tick.step >= until:
                break
        checkpoint.save(run, tmp_path)
    assert run.trainers[0].diverged == through.trainers[0].diverged is not None
    assert same(checkpoint.state_tensors(run.trainers[1]), alone[0])
    assert retold == told


def test_where_all_have_diverged_the_run_ends_and_leaves_no_checkpoint(tokens, tmp_path) -> None:
    run = several(tokens, [hot(), hot("batchtopk")])
    with pytest.raises(Diverged, match="finite number at step .* 1e\\+30 is too high"):
        ended(run)
    assert run.step == 5, "at the first look"
    with pytest.raises(Diverged):
        checkpoint.save(run, tmp_path)
    assert not checkpoint.checkpoints(tmp_path)


# ---- the kind


def both(home, folder, **changes: Any) -> train_sae.Params:  # noqa: F811
    """A training of two, of which the first diverges."""
    one = {"architecture": "topk", "width": 48, "options": {"k": 4}, "reads": [SITE]}
    saes = [
        {**one, "folder": str(folder / "sae"), "lr": 1e30, "lr_warmup_steps": 0},
        {**one, "folder": str(folder / "sae-1"), "lr": 2e-3},
    ]
    return params(train_sae, home, "x", folder=str(folder), saes=saes, **changes)


def test_a_training_says_which_sae_diverged_and_makes_the_others(home, tmp_path, capsys) -> None:  # noqa: F811
    ctx = Context(1, 1, train_sae.STAGES)
    told = train_sae.run(both(home, tmp_path), ctx)
    gone, made = told["saes"]
    assert gone.keys() == {"diverged", "message", "hint"} and gone["diverged"] in range(10)
    assert f"at step {gone['diverged']} of 40" in gone["message"] and "lower learning rate" in gone["hint"]
    assert not (tmp_path / "sae").exists(), "no files of an SAE that is none"
    assert made["fvu"] < 1 and "diverged" not in made and load_sae(tmp_path / "sae-1").width == 48
    assert ctx.metrics[40]["diverged.0"] == gone["diverged"] and "fvu.0" not in ctx.metrics[40]
    assert {"fvu.1", "ce_recovered.1"} <= ctx.metrics[40].keys() and "ce_recovered.0" not in ctx.metrics[40]
    assert f"SAE 1 of 2: {gone['message']} {gone['hint']}" in capsys.readouterr().out
    undisturbed = (home / "training" / "sae" / "sae_weights.safetensors").read_bytes()
    assert (tmp_path / "sae-1" / "sae_weights.safetensors").read_bytes() == undisturbed


def test_a_training_with_one_that_diverged_pauses_resumes_and_ends_early_with_the_rest(home, tmp_path) -> None:  # noqa: F811
    mine = both(home, tmp_path)
    for wish, raised in (("pause", Paused), ("cancel", Cancelled)):
        with pytest.raises(raised):
            train_sae.run(mine, Wishful(train_sae, wish, 22))
    told = train_sae.run(mine, Wishful(train_sae, "finish", 14))
    assert told["stopped_early"] and "diverged" in told["saes"][0] and told["saes"][1]["fvu"] > 0


def test_a_training_fails_where_every_sae_diverged(home, tmp_path) -> None:  # noqa: F811
    mine = both(home, tmp_path)
    mine = dataclasses.replace(mine, saes=tuple({**one, "lr": 1e30, "lr_warmup_steps": 0} for one in mine.saes))
    with pytest.raises(Diverged) as raised:
        train_sae.run(mine, Context(1, 1, train_sae.STAGES))
    failure = classify(raised.value)
    assert (failure.code, failure.hint) == ("VALIDATION", "Start again with a lower learning rate.")
    assert not any(tmp_path.glob("**/*.safetensors"))
