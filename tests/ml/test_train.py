import dataclasses
import functools
from pathlib import Path

import pytest
import torch

from jobs.ml import checkpoint
from jobs.ml.activations import ActivationStream
from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.config import BadConfig, Member, TrainConfig
from jobs.ml.sites import Site
from jobs.ml.tokens import TokenShards
from jobs.ml.train import Diverged, Run, Trainer
from tests.ml.tiny import killed_at, tiny_model

SITE = "blocks.1.hook_resid_post"
CONFIG = TrainConfig(
    width=64, tokens=6000, options={"k": 4}, batch_tokens=100, lr=2e-3, dead_after_tokens=500, seed=3
)  # fmt: skip
L1 = dataclasses.replace(CONFIG, architecture="standard", options={"l1_coefficient": 2.0, "aux_coefficient": 1 / 32})

JUMP = dataclasses.replace(
    CONFIG, architecture="jumprelu", options={"target_l0": 4.0, "aux_coefficient": 1 / 32, "sparsity_warmup_share": 0.0}
)


def trainer(tokens: Path, config: TrainConfig = CONFIG, **options: int) -> Run:
    options = {"buffer_tokens": 1500} | options
    stream = ActivationStream(
        tiny_model("llama"), SITE, TokenShards(tokens), batch_tokens=config.batch_tokens, seed=config.seed, **options,
    )  # fmt: skip
    return Run([Member(config, (SITE,))], stream)


def run(one: Run, until: int | None = None) -> list[dict[str, float]]:
    metrics = []
    for tick in one.run():
        if tick.metrics:
            metrics.append({"step": tick.step, **tick.metrics[0]})
        if until is not None and tick.step >= until:
            break
    return metrics


def weights(one: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in checkpoint.state_tensors(one.trainers[0]).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def through(tokens):
    """What a run without any break tells, and its weights at the end."""

    @functools.cache
    def through(architecture: str) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
        one = trainer(tokens, {"topk": CONFIG, "standard": L1}[architecture])
        return run(one), weights(one)

    return through


@pytest.mark.parametrize("config", [CONFIG, L1], ids=["topk", "standard"])
def test_training_explains_more_and_more_of_the_activations(through, config) -> None:
    metrics, _ = through(config.architecture)
    assert metrics[-1]["step"] == config.steps == 60
    assert metrics[-1]["fvu"] < 0.7 * metrics[0]["fvu"]
    assert {"loss", "mse", "fvu", "l0", "dead", "lr", "grad_norm"} <= metrics[-1].keys()
    assert ("l1" in metrics[-1]) == (config is L1)
    if config is CONFIG:
        assert 1 <= metrics[-1]["l0"] <= 4


def test_the_first_steps_are_reported_against_the_variance_of_their_batch(tokens) -> None:
    one = trainer(tokens, dataclasses.replace(CONFIG, log_every=1))
    metrics = run(one, until=1)[0]
    fresh = trainer(tokens).trainers[0]
    batch = one.stream.batch(0)
    fresh.begin(one.stream.sample(), batch)
    x = batch[SITE] * fresh.scales[0][0]
    error = (x - fresh.sae(x)).square().sum()
    assert metrics["fvu"] == pytest.approx((error / (x - x.mean(0)).square().sum()).item(), rel=1e-4)
    assert metrics["mse"] == pytest.approx(error.item() / 100, rel=1e-4)


@pytest.mark.parametrize("config", [CONFIG, L1], ids=["topk", "standard"])
@pytest.mark.parametrize("steps", [0, 1, 17, 48])
def test_a_run_resumed_from_a_checkpoint_is_bit_for_bit_the_run_that_went_through(
    tokens, through, tmp_path, config, steps
) -> None:
    told, wanted = through(config.architecture)
    before = trainer(tokens, config)
    if steps:
        run(before, until=steps)
    checkpoint.save(before, tmp_path)
    after = trainer(tokens, config)
    assert checkpoint.resume(after, tmp_path)
    assert after.step == steps
    retold = run(after)
    assert same(weights(after), wanted)
    assert retold == [metrics for metrics in told if metrics["step"] > steps]


def test_some_latents_were_dead_on_the_way_so_that_their_state_was_part_of_the_proof(through) -> None:
    metrics, _ = through("topk")
    assert any(m["dead"] > 0 for m in metrics)
    assert any("aux" in m for m in metrics)


def test_only_the_newest_two_checkpoints_stay(tokens, tmp_path) -> None:
    one = trainer(tokens)
    for tick in one.run():
        if tick.step and tick.step % 10 == 0 and tick.metrics:
            checkpoint.save(one, tmp_path)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-000000050", "step-000000060"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "no state", "half json"])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tokens, tmp_path, damage) -> None:
    one = trainer(tokens)
    run(one, until=10)
    checkpoint.save(one, tmp_path)
    run(one, until=20)
    newest = checkpoint.save(one, tmp_path)
    tensors, state = newest / "sae-0.safetensors", newest / "state.json"
    data = bytearray(tensors.read_bytes())
    if damage == "truncate":
        tensors.write_bytes(data[:-100])
    elif damage == "flip":
        data[-50] ^= 1
        tensors.write_bytes(data)
    elif damage == "no state":
        state.unlink()
    else:
        state.write_text(state.read_text()[:40])
    after = trainer(tokens)
    assert checkpoint.resume(after, tmp_path)
    assert after.step == 10


def train_and_save(tokens: Path, folder: Path) -> None:
    one = trainer(tokens)
    for tick in one.run():
        if tick.metrics:
            checkpoint.save(one, folder)


def test_a_run_killed_while_it_writes_a_checkpoint_ends_with_the_same_weights(tokens, through, tmp_path) -> None:
    assert killed_at(2, "write_json", train_and_save, tokens, tmp_path)
    after = trainer(tokens)
    assert checkpoint.resume(after, tmp_path)
    assert after.step == 20
    run(after)
    assert same(weights(after), through("topk")[1])


def test_a_checkpoint_of_another_config_is_not_taken_up(tokens, tmp_path) -> None:
    one = trainer(tokens)
    run(one, until=10)
    checkpoint.save(one, tmp_path)
    assert checkpoint.resume(trainer(tokens, dataclasses.replace(CONFIG, micro_batch_tokens=10)), tmp_path)
    assert not checkpoint.resume(trainer(tokens, dataclasses.replace(CONFIG, lr=1e-3)), tmp_path)
    assert checkpoint.checkpoints(tmp_path) == [], "they would push out those of the new run"


@pytest.mark.parametrize("other", [{"skip_special": False}, {"buffer_tokens": 800}])
def test_a_checkpoint_of_other_activations_is_not_taken_up(tokens, tmp_path, other) -> None:
    one = trainer(tokens)
    run(one, until=10)
    checkpoint.save(one, tmp_path)
    assert not checkpoint.resume(trainer(tokens, **other), tmp_path)


def test_a_run_that_was_ended_early_stays_ended_after_a_resume(tokens, tmp_path) -> None:
    one = trainer(tokens)
    run(one, until=10)
    one.stopped = True
    checkpoint.save(one, tmp_path)
    after = trainer(tokens)
    checkpoint.resume(after, tmp_path)
    assert after.finished
    assert list(after.run()) == []


@pytest.mark.parametrize("config", [CONFIG, L1, JUMP], ids=["topk", "standard", "jumprelu"])
def test_micro_batches_change_the_memory_and_not_the_gradients(config) -> None:
    x = {SITE: torch.randn(250, 16, generator=torch.manual_seed(0)) * torch.linspace(0.1, 5, 250)[:, None]}
    told, trainers = [], []
    for n in (None, 60):
        own = dataclasses.replace(config, micro_batch_tokens=n, log_every=1)
        one = Trainer(Member(own, (SITE,)), {SITE: Site(SITE, 16, "", "input")})
        one.begin(x, x)
        one.silent[:20] = config.dead_window
        told.append(one.update(x, 0))
        trainers.append(one)
    whole, parts = trainers
    assert told[0] == pytest.approx(told[1], rel=1e-5) and told[0]["aux"] > 0
    for a, b in zip(whole.sae.parameters(), parts.sae.parameters(), strict=True):
        assert a.grad is not None and (a.grad - b.grad).norm() < 1e-5 * a.grad.norm()
    assert torch.equal(whole.silent, parts.silent)


def test_what_moves_thresholds_does_not_shrink_the_steps_of_the_weights() -> None:
    x, learned = {SITE: torch.randn(250, 16, generator=torch.manual_seed(0))}, []
    for weight in (1.0, 1e6):
        options = {**JUMP.options, "l0_coefficient": weight}
        one = Trainer(Member(dataclasses.replace(JUMP, options=options), (SITE,)), {SITE: Site(SITE, 16, "", "input")})
        one.begin(x, x)
        one.update(x, 0)
        learned.append(one.sae)
    a, b = learned
    assert torch.equal(a.W_enc, b.W_enc) and torch.equal(a.W_dec, b.W_dec)
    assert a.W_enc.grad is not None and a.W_enc.grad.norm() > 0.1


def test_the_export_reads_unscaled_activations_and_computes_what_training_did(tokens) -> None:
    one = trainer(tokens)
    run(one)
    x, learned = one.stream.batch(2)[SITE], one.trainers[0]
    exported, scale = learned.export(), learned.scales[0][0]
    assert torch.allclose(exported(x), learned.sae(x * scale) / scale, atol=1e-4)
    assert torch.allclose(exported.W_dec.norm(dim=1), torch.ones(64), atol=1e-5)


def test_a_learning_rate_beyond_reason_is_told_with_the_step_and_leaves_no_checkpoint(tokens, tmp_path) -> None:
    one = trainer(tokens, dataclasses.replace(CONFIG, lr=1e30, lr_warmup_steps=0))
    with pytest.raises(Diverged, match=r"finite number at step [1-9] of 60: the learning rate 1e\+30 is too high"):
        run(one)
    with pytest.raises(Diverged):
        checkpoint.save(one, tmp_path)
    assert not checkpoint.checkpoints(tmp_path)


def test_two_runs_with_one_seed_are_equal_and_with_another_are_not(tokens) -> None:
    first, second, other = trainer(tokens), trainer(tokens), trainer(tokens, dataclasses.replace(CONFIG, seed=4))
    for one in (first, second, other):
        run(one, until=8)
    assert same(weights(first), weights(second))
    assert not torch.equal(first.trainers[0].sae.W_dec, other.trainers[0].sae.W_dec)


def test_ticks_come_while_activations_are_gathered_so_that_a_wish_is_heard(tokens) -> None:
    ticks = list(trainer(tokens, model_batch=4).run())
    assert sum(1 for tick in ticks if tick.step == 0) > 10
    assert [tick.step for tick in ticks] == sorted(tick.step for tick in ticks)


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    config = TrainConfig(width=2**14, tokens=1000 * 10, batch_tokens=10, lr_warmup_steps=99)
    rates = [config.lr_at(step) for step in range(1000)]
    assert config.peak_lr == pytest.approx(2e-4)
    assert rates[0] == pytest.approx(2e-6)
    assert rates[99] == rates[800] == pytest.approx(2e-4)
    assert rates[900] == pytest.approx(1e-4)
    assert 0 < rates[-1] <= 1.001e-6
    assert TrainConfig(width=2**12, tokens=1).peak_lr == pytest.approx(4e-4)


@pytest.mark.parametrize(
    ("steps", "given", "beta"), [(60, None, 0.99), (1200, None, 0.995), (10**5, None, 0.999), (60, 0.9, 0.9)]
)
def test_the_mean_of_squared_gradients_is_shorter_in_short_runs(steps, given, beta) -> None:
    assert TrainConfig(width=32, tokens=steps, batch_tokens=1, beta2=given).squares_beta == pytest.approx(beta)


def test_the_penalty_rises_over_a_share_of_the_steps() -> None:
    config = TrainConfig(
        width=8, tokens=1000, batch_tokens=10, architecture="standard", options={"l1_coefficient": 4.0}
    )
    assert [config.warmed("l1_coefficient", step) for step in (0, 14, 29, 99)] == pytest.approx([4 / 30, 2.0, 4.0, 4.0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0), ("lr", 0.0), ("lr", float("inf")), ("lr", -1e-3), ("tokens", 0),
        ("batch_tokens", 0), ("micro_batch_tokens", 0), ("architecture", "relu"), ("selection", "int8"), ("beta2", 1.0),
        ("seed", -1), ("grad_clip", 0.0), ("lr_decay_share", 1.5), ("log_every", 0),
    ],
)  # fmt: skip
def test_a_number_that_cannot_be_is_refused_by_its_name(field, value) -> None:
    with pytest.raises(BadConfig, match=f"^{field} must be .* not ") as refused:
        dataclasses.replace(CONFIG, **{field: value})
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 0}, "k must be a whole number from 1, not 0"),
        ({"k": 65}, "k must be from 1 to the width, 64, not 65"),
        ({"k": 2.5}, "k must be a whole number from 1, not 2.5"),
        ({"k": True}, "k must be a whole number from 1, not True"),
        ({"aux_coefficient": -1.0}, "aux_coefficient must be a number from 0, not -1.0"),
        ({"aux_coefficient": float("inf")}, "aux_coefficient must be a finite number, not inf"),
        ({"l1_coefficient": 1.0}, "l1_coefficient is no option of TopK: it has k, aux_coefficient"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_name(options, said) -> None:
    with pytest.raises(BadConfig, match=said) as refused:
        dataclasses.replace(CONFIG, options=options)
    assert refused.value.field == next(iter(options))


def test_options_that_are_left_out_are_those_of_the_table() -> None:
    assert TrainConfig(64, 100).options == {"k": 32, "aux_coefficient": 1 / 32}
    assert TrainConfig(64, 100, options={"k": 3, "aux_coefficient": None}).options["aux_coefficient"] == 1 / 32


OTHERS = {
    "reads": ("blocks.0.hook_resid_pre", SITE),
    "writes": ("blocks.1.hook_mlp_out",),
}


def of_all(architecture: str, seed: int = 3) -> Member:
    """One of each architecture, with data that lets some latents die."""
    shape = ARCHITECTURES[architecture]
    own = {"k": 4, "target_l0": 4.0, "l1_coefficient": 2.0, "bandwidth": 0.1, "anneal_from": 0.1}
    config = TrainConfig(
        width=64, tokens=3000, architecture=architecture, batch_tokens=100, lr=2e-3, dead_after_tokens=300, seed=seed,
        log_every=5, options={name: value for name, value in own.items() if name in shape.presets},
    )  # fmt: skip
    return Member(config, OTHERS["reads"] if shape.spans else (SITE,), OTHERS["writes"] if shape.transcodes else ())


def several(tokens: Path, members: list[Member]) -> Run:
    sites = [*OTHERS["reads"], *OTHERS["writes"]]
    stream = ActivationStream(
        tiny_model("llama"), sites, TokenShards(tokens), batch_tokens=100, buffer_tokens=1500, seed=1
    )
    return Run(members, stream)


def ended(one: Run, until: int | None = None) -> list[dict[str, torch.Tensor]]:
    for tick in one.run():
        if until is not None and tick.step >= until:
            break
    return [
        {name: tensor.clone() for name, tensor in checkpoint.state_tensors(trainer).items()} for trainer in one.trainers
    ]


@pytest.fixture(scope="module")
def alone(tokens: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {name: ended(several(tokens, [of_all(name)]))[0] for name in ARCHITECTURES}


def test_many_saes_of_one_forward_pass_are_each_to_the_last_bit_what_they_are_alone(tokens, alone) -> None:
    together = ended(several(tokens, [of_all(name) for name in ARCHITECTURES]))
    for name, state in zip(ARCHITECTURES, together, strict=True):
        assert same(state, alone[name]), name


def test_a_mixed_run_that_is_killed_and_resumed_again_and_again_is_the_undisturbed_one(tokens, tmp_path, alone) -> None:
    members = [of_all(name) for name in ARCHITECTURES]
    for until in (1, 4, 17, 29, None):
        run = several(tokens, members)
        assert checkpoint.resume(run, tmp_path) == (until != 1)
        states = ended(run, until)
        checkpoint.save(run, tmp_path)
    for name, state in zip(ARCHITECTURES, states, strict=True):
        assert same(state, alone[name]), name


def test_another_seed_width_or_site_is_another_sae_of_the_same_stream(tokens, alone) -> None:
    other_seed = ended(several(tokens, [of_all("topk", seed=4), of_all("topk")]))
    assert not torch.equal(other_seed[0]["sae.W_dec"], other_seed[1]["sae.W_dec"])
    assert same(other_seed[1], alone["topk"])


def test_all_saes_of_a_run_must_be_as_long(tokens) -> None:
    longer = of_all("topk")
    longer = dataclasses.replace(longer, config=dataclasses.replace(longer.config, tokens=4000))
    with pytest.raises(BadConfig, match="tokens must be the same for all SAEs of a run"):
        several(tokens, [of_all("topk"), longer])


def test_a_stream_of_other_batches_is_refused(tokens) -> None:
    other = dataclasses.replace(CONFIG, batch_tokens=200)
    with pytest.raises(BadConfig, match="the stream gives 100, the configuration asks for 200"):
        Run([Member(other, (SITE,))], trainer(tokens).stream)


@pytest.mark.parametrize(
    ("architecture", "reads", "writes", "said"),
    [
        ("topk", (SITE,), ("blocks.1.hook_mlp_out",), "TopK writes the sites that it reads"),
        ("transcoder", (SITE,), (), "Transcoder needs a site to write"),
        ("topk", OTHERS["reads"], (), "TopK reads one site; a crosscoder reads several"),
        ("crosscoder", (SITE,), (), "Crosscoder reads several sites"),
        ("crosscoder", (SITE, SITE), (), "Name each site once"),
    ],
)
def test_an_architecture_that_does_not_go_with_its_sites_is_refused(architecture, reads, writes, said) -> None:
    with pytest.raises(BadConfig, match=said):
        Member(TrainConfig(64, 100, architecture=architecture), reads, writes).check()
