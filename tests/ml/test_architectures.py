"""Each architecture against its formula, written out here in float64 with whole matrices and no code of the engine."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.ml import selection
from jobs.ml.architectures import ARCHITECTURES, build, class_of
from jobs.ml.architectures import jumprelu as jumprelu_of_the_engine
from jobs.ml.architectures.options import OPTIONS
from jobs.ml.config import Member, TrainConfig
from jobs.ml.revival import revive
from jobs.ml.sae import Moment, Sae, squared_error
from jobs.ml.scaling import geometric_median, input_scale
from jobs.ml.selection import largest_of_batch
from jobs.ml.sites import Site
from jobs.ml.support import Dense, Linear, Sparse
from jobs.ml.train import Trainer

B, D, M, K = 64, 12, 40, 5
PARTS = (5, 7)
D_OUT = 9
DEAD = torch.tensor([2, 7, 30])
NAMES = list(ARCHITECTURES)
Weights = Mapping[str, Tensor]


def config_of(name: str, **options: Any) -> TrainConfig:
    own = {"k": K, "target_l0": 6.0, "bandwidth": 0.8, "initial_threshold": 0.3, "l1_coefficient": 0.7} | options
    known = {option: value for option, value in own.items() if option in ARCHITECTURES[name].presets}
    return TrainConfig(M, 1000, architecture=name, options=known, batch_tokens=B)


def trained_like(name: str, seed: int = 0, **options: Any) -> Sae:
    """Weights without any special structure."""
    torch.manual_seed(seed)
    config = config_of(name, **options)
    d_out = D_OUT if ARCHITECTURES[name].transcodes else None
    sae = build(name, D, M, d_out=d_out, parts=PARTS, **config.options)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
        sae.W_dec *= torch.rand(M, 1) * 3 + 0.1
        for threshold in (
            parameter for parameter_name, parameter in sae.named_parameters() if "threshold" in parameter_name
        ):
            threshold.abs_()
    return sae


def batch(sae: Sae, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(B, D, dtype=dtype)
    return x, x if sae.d_out == D else torch.randn(B, sae.d_out, dtype=dtype)


@pytest.fixture(params=NAMES)
def sae(request: pytest.FixtureRequest) -> Sae:
    return trained_like(request.param)


# ---- the formulas


def pre(w: Weights, x: Tensor) -> Tensor:
    return (x - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]


def norms(w: Weights) -> Tensor:
    return w["W_dec"].norm(dim=1)


def error(y: Tensor, y_hat: Tensor) -> Tensor:
    return ((y - y_hat) ** 2).sum(1).mean()


def kept(strength: Tensor, k: int) -> Tensor:
    """1 at the k largest of each row"""
    return torch.zeros_like(strength).scatter(1, strength.topk(k, dim=1).indices, 1.0)


def kept_of_batch(strength: Tensor, n: int) -> Tensor:
    flat = strength.clamp_min(0).flatten()
    return torch.zeros_like(flat).scatter(0, flat.topk(n).indices, 1.0).view_as(strength)


Outcome = tuple[Tensor, Tensor, dict[str, Tensor]]  # codes, reconstruction, terms of the loss with their weights


def topk(w: Weights, x: Tensor, y: Tensor) -> Outcome:
    a = pre(w, x)
    f = torch.relu(a) * kept(a * norms(w), K)
    return f, f @ w["W_dec"] + w["b_dec"], {}


def abstopk(w: Weights, x: Tensor, y: Tensor) -> Outcome:
    a = pre(w, x)
    f = a * kept(a.abs() * norms(w), K)
    return f, f @ w["W_dec"] + w["b_dec"], {}


def batchtopk(w: Weights, x: Tensor, y: Tensor) -> Outcome:
    a = pre(w, x)
    f = torch.relu(a) * kept_of_batch(a * norms(w), K * B)
    return f, f @ w["W_dec"] + w["b_dec"], {}


def matryoshka(w: Weights, x: Tensor, y: Tensor) -> Outcome:
    f, x_hat, _ = batchtopk(w, x, y)
    inner = [error(y, f[:, :n] @ w["W_dec"][:n] + w["b_dec"]) for n in (3, 5, 10, 20)]
    return f, x_hat, {"nested": sum(inner)}


def standard(w: Weights, x: Tensor, y: Tensor) -> Outcome:
    f = torch.relu(pre(w, x))
    return f, f @ w["W_dec"] + w["b_dec"], {"l1": 0.7 * (f * norms(w)).sum(1).mean()}


def p_anneal(w: Weights, x: Tensor, y: Tensor) -> Outcome:
    f = torch.relu(pre(w, x))
    lengths = torch.clamp(f * norms(w), min=1e-6)
    return f, f @ w["W_dec"] + w["b_dec"], {"lp": 0.7 * 1.3 * (lengths**0.6 - (1e-6) ** 0.6).sum(1).mean()}


def gated(w: Weights, x: Tensor, y: Tensor) -> Outcome:
    pi = pre(w, x)
    magnitude = torch.relu((x - w["b_dec"]) @ (w["W_enc"] * w["r_mag"].exp()[:, None]).T + w["b_mag"])
    f = torch.where(pi > 0, magnitude, torch.zeros_like(magnitude))
    gate = torch.relu(pi)
    l1 = 0.7 * gate.sum(1).mean()
    by_gate = error(y, gate @ w["W_dec"].detach() + w["b_dec"].detach())
    return f, f @ w["W_dec"] + w["b_dec"], {"l1": 0.4 * l1, "gate": 0.4 * by_gate}


def rectangle(a: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return (((a - threshold) / bandwidth).abs() < 0.5).to(a.dtype) / bandwidth


def jump(w: Weights, x: Tensor, to_input: bool) -> tuple[Tensor, Tensor]:
    """JumpReLU and step as a value plus a surrogate whose value is zero and whose gradient is the estimate's."""
    a, threshold = pre(w, x), w["threshold"]
    on = (a > threshold).to(a.dtype)
    near = rectangle(a, threshold, 0.8).detach()
    moved = (a - a.detach() if to_input else 0) - (threshold - threshold.detach())
    return a * on + threshold.detach() * near * moved, on + near * moved


def jumprelu(loss: str, to_input: bool) -> Callable[[Weights, Tensor, Tensor], Outcome]:
    def formula(w: Weights, x: Tensor, y: Tensor) -> Outcome:
        f, step = jump(w, x, to_input)
        l0 = step.sum(1).mean()
        terms = {
            "quadratic": {"l0_miss": D * (l0 / 6.0 - 1) ** 2},
            "step": {"l0_price": l0},
            "tanh": {"tanh": torch.tanh(4 * f * norms(w)).sum(1).mean()},
        }[loss]
        gap = torch.relu(w["threshold"][DEAD] - pre(w, x)[:, DEAD]) * norms(w)[DEAD]
        return f, f @ w["W_dec"] + w["b_dec"], terms | {"dead_gap": 3e-6 * gap.sum(1).mean()}

    return formula


def crosscoder(w: Weights, x: Tensor, y: Tensor) -> Outcome:
    a = pre(w, x)
    lengths = w["W_dec"][:, :5].norm(dim=1) + w["W_dec"][:, 5:].norm(dim=1)
    f = torch.relu(a) * kept(a * lengths, K)
    return f, f @ w["W_dec"] + w["b_dec"], {}


def transcoder(w: Weights, x: Tensor, y: Tensor) -> Outcome:
    a = x @ w["W_enc"].T + w["b_enc"]
    f = torch.relu(a) * kept(a * norms(w), K)
    skip = x @ w["W_skip"].T if "W_skip" in w else 0
    return f, f @ w["W_dec"] + w["b_dec"] + skip, {}


FORMULAS: list[tuple[str, dict[str, Any], Callable[[Weights, Tensor, Tensor], Outcome]]] = [
    ("topk", {}, topk),
    ("abstopk", {}, abstopk),
    ("batchtopk", {}, batchtopk),
    ("matryoshka", {"levels": 5}, matryoshka),
    ("standard", {}, standard),
    ("p_anneal", {}, p_anneal),
    ("gated", {"gate_coefficient": 0.4}, gated),
    *(
        ("jumprelu", {"l0_loss": loss, "ste_to_input": to_input}, jumprelu(loss, bool(to_input)))
        for loss in ("quadratic", "step", "tanh")
        for to_input in (0, 1)
    ),
    ("crosscoder", {}, crosscoder),
    ("transcoder", {}, transcoder),
    ("skip_transcoder", {}, transcoder),
]


def test_every_architecture_has_its_formula_here() -> None:
    assert {name for name, _, _ in FORMULAS} == set(NAMES)


@pytest.mark.parametrize("spread", [0.0, 2.5], ids=["many", "few"])
@pytest.mark.parametrize(
    ("name", "options", "formula"),
    FORMULAS,
    ids=[" ".join([name, *map(str, own.values())]) for name, own, _ in FORMULAS],
)
def test_codes_losses_and_gradients_are_those_of_the_formula(name, options, formula, spread, monkeypatch) -> None:
    """In float64, to a relative error of 1e-6; where many latents are active (whole matrices) and where few are."""
    monkeypatch.setattr(jumprelu_of_the_engine, "CHUNK", 10 * M)  # in seven parts
    sae = trained_like(name, **options).double()
    x, y = batch(sae, torch.float64)
    with torch.no_grad():
        sae.b_enc -= spread * sae.W_enc.norm(dim=1)
    if name == "p_anneal":
        sae.p.fill_(0.6)
        sae.held.fill_(1.3)
    config = dataclasses.replace(config_of(name, **options, sparsity_warmup_share=0.0))
    support = sae.support(x)
    if name in ("standard", "gated", "p_anneal", "jumprelu"):
        assert isinstance(support, Sparse if spread else Dense)
    moment = Moment(config, 3, DEAD)
    if name == "jumprelu":
        sae.observe(x, support, moment)
    fit = sae.fit(x, y, support, moment)
    fit.loss.backward()
    w = {
        name: value.detach().clone().requires_grad_(value.is_floating_point())
        for name, value in sae.state_dict().items()
    }
    f, x_hat, terms = formula(w, x, y)
    loss = error(y, x_hat) + sum(terms.values())
    loss.backward()
    near = {"rtol": 1e-6, "atol": 1e-9}
    torch.testing.assert_close(fit.x_hat, x_hat, **near)
    torch.testing.assert_close(fit.loss, loss, **near)
    assert torch.equal(fit.fired, (f != 0).sum(0).double())
    assert fit.parts.keys() == {"mse", *terms}
    for parameter_name, parameter in sae.named_parameters():
        wanted = w[parameter_name].grad
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        torch.testing.assert_close(gradient, torch.zeros_like(parameter) if wanted is None else wanted, **near)
    if name not in ("batchtopk", "matryoshka"):
        torch.testing.assert_close(sae.encode(x), f.detach(), **near)


# ---- what holds for all


def test_active_is_encode_without_its_zeros(sae) -> None:
    x, _ = batch(sae)
    codes = sae.active(x)
    assert (codes.values != 0).all()
    assert sae.signed or (codes.values > 0).all()
    assert torch.equal(codes.rows, codes.rows.sort().values)
    dense = torch.zeros(B, M).index_put((codes.rows, codes.latents), codes.values)
    assert torch.equal(dense, sae.encode(x))
    assert torch.allclose(sae.decode_active(codes, x), sae(x), atol=1e-5)
    assert torch.allclose(sae(x), dense @ sae.W_dec + sae.bypass(x), atol=1e-4)


def test_rows_without_any_active_latent_are_rebuilt_as_the_bias() -> None:
    sae = trained_like("standard")
    x, _ = batch(sae)
    with torch.no_grad():
        sae.b_enc -= 6
        x[[0, B // 2, B - 1]] = sae.b_dec
        codes = sae.active(x)
        assert torch.bincount(codes.rows, minlength=B)[[0, B // 2, B - 1]].sum() == 0
        assert torch.allclose(sae(x)[0], sae.b_dec)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=10)
@given(scale=st.floats(1e-3, 1e3), out=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_folding_scales_norms_and_thresholds_changes_nothing_but_the_units(name, scale, out, seed) -> None:
    sae = trained_like(name, seed).double()
    x, y = batch(sae, torch.float64)  # as training saw it: scaled
    out = out if ARCHITECTURES[name].transcodes else scale
    s_in: Any = torch.tensor([scale] * 5 + [out * 3] * 7).double() if name == "crosscoder" else scale
    s_out = s_in if name == "crosscoder" else out
    if isinstance(threshold := getattr(sae, "threshold", None), Tensor) and threshold.ndim == 0:
        support = sae.support(x)
        sae.observe(x, support, Moment(config_of(name), 0, DEAD))
        sae.threshold *= 1 - 1e-6  # the least of this batch is above it
    folded = sae.folded(s_in, s_out)
    wanted = sae(x) / s_out
    torch.testing.assert_close(folded(x / s_in), wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())
    if name != "crosscoder":
        assert torch.allclose(folded.W_dec.norm(dim=1), torch.ones(M).double(), atol=1e-5)
    assert torch.equal(folded.encode(x / s_in) != 0, sae.encode(x) != 0)


def test_folding_twice_is_folding_once(sae) -> None:
    once = sae.folded(3.0)
    assert all(torch.allclose(a, b) for a, b in zip(once.parameters(), once.folded().parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_batch_have_together_the_loss_of_the_whole(name) -> None:
    sae = trained_like(name).double()
    x, y = batch(sae, torch.float64)
    config = config_of(name)
    moment, in_parts = (Moment(dataclasses.replace(config, micro_batch_tokens=n), 3, DEAD) for n in (None, 30))
    support = sae.support(x)
    sae.observe(x, support, moment)
    whole = sae.fit(x, y, support, moment)
    sae.observe(x, support, in_parts)
    parts = [
        sae.fit(x[start:end], y[start:end], support.part(start, end), in_parts)
        for start, end in ((0, 10), (10, 40), (40, B))
    ]
    shares = [len(part.x_hat) / B for part in parts]
    torch.testing.assert_close(sum(s * part.loss for s, part in zip(shares, parts, strict=True)), whole.loss)
    assert torch.equal(torch.stack([part.fired for part in parts]).sum(0), whole.fired)


@pytest.mark.parametrize("name", NAMES)
def test_choosing_in_bfloat16_changes_next_to_nothing(name) -> None:
    """What is chosen may differ where two are nearly equal; the values are computed in full precision."""
    sae = trained_like(name)
    x, y = batch(sae)
    moment = Moment(config_of(name), 3, DEAD)
    exact, coarse = (sae.fit(x, y, sae.support(x, dtype), moment) for dtype in (None, torch.bfloat16))
    assert coarse.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)
    same = (exact.x_hat - coarse.x_hat).norm(dim=1) < 1e-4 * exact.x_hat.norm(dim=1)
    assert same.float().mean() > 0.7


def test_it_starts_with_encoder_and_decoder_alike_and_the_centre_as_bias(sae) -> None:
    centre, inputs = torch.arange(sae.d_out).float(), torch.arange(D).float()
    sae.initialise(seed=3, b_dec=centre, centre=inputs)
    assert torch.equal(sae.b_dec, centre)
    norms_of = {"gated": (0.3, 1.0)}.get(sae.architecture, (0.1, 0.1))
    for weight, norm in zip((sae.W_enc, sae.W_dec), norms_of, strict=True):
        assert torch.allclose(weight.norm(dim=1), torch.full((M,), norm))
    if sae.centred:
        assert torch.allclose(sae.W_enc / norms_of[0], sae.W_dec / norms_of[1])
        assert not sae.b_enc.any()
    else:
        assert torch.allclose(inputs @ sae.W_enc.T + sae.b_enc, torch.zeros(M), atol=1e-5)


# ---- single ones


@pytest.mark.parametrize("rows", [8192, 500])
def test_the_squared_error_of_many_rows_is_exact_in_float32(rows) -> None:
    x, x_hat = torch.randn(2, rows, 2304)
    exact = (x.double() - x_hat.double()).square().sum() / rows
    assert squared_error(x, x_hat).item() == pytest.approx(exact.item(), rel=1e-6)


def test_decoder_rows_of_gated_have_norm_1_after_every_step() -> None:
    member = Member(config_of("gated"), ("x",))
    trainer = Trainer(member, {"x": Site("x", D, "", "input")})
    x = {"x": torch.randn(B, D)}
    trainer.begin(x, x)
    before = trainer.sae.W_dec.clone()
    for step in range(3):
        trainer.update(x, step)
        assert torch.allclose(trainer.sae.W_dec.norm(dim=1), torch.ones(M))
    assert not torch.allclose(trainer.sae.W_dec, before, atol=1e-4), "they learn"


def test_the_threshold_of_a_trained_batchtopk_follows_the_least_that_survives() -> None:
    sae = trained_like("batchtopk")
    x, _ = batch(sae)
    moments = [Moment(config_of("batchtopk"), step, DEAD) for step in (0, 1, 500)]
    sae.observe(x, sae.support(x), moments[0])
    first = sae.support(x)
    least = (sae.W_dec.norm(dim=1)[first.latents] * first.encode(x, sae.encoder())).min().item()
    assert float(sae.threshold) == pytest.approx(least, rel=1e-5)
    second = sae.support(3 * x)
    of_second = (sae.W_dec.norm(dim=1)[second.latents] * second.encode(3 * x, sae.encoder())).min().item()
    sae.observe(x, second, moments[1])
    assert float(sae.threshold) == pytest.approx((least + of_second) / 2, rel=1e-5)
    before = float(sae.threshold)
    sae.observe(x, sae.support(9 * x), moments[2])
    assert float(sae.threshold) == pytest.approx(0.99 * before + 0.01 * sae.least, rel=1e-5)
    folded = sae.folded(2.0)
    assert folded.architecture == "jumprelu"
    assert torch.allclose(folded.threshold, sae.threshold.float() / 2)


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is made meanwhile."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, made.numel() if isinstance(made, Tensor) else 0)
        return made


@pytest.mark.parametrize(("part", "most"), [(None, 0), (30, B * D)], ids=["whole", "in parts"])
def test_the_l0_that_a_jumprelu_aims_at_is_counted_without_the_codes_of_the_whole_batch(
    part, most, monkeypatch
) -> None:
    monkeypatch.setitem(selection.CHUNK, "cpu", 5 * M)
    sae = trained_like("jumprelu")
    x, _ = batch(sae)
    moment = Moment(dataclasses.replace(config_of("jumprelu"), micro_batch_tokens=part), 3, DEAD)
    assert moment.config.options["l0_loss"] == "quadratic"
    with Largest() as largest:
        sae.observe(x, Dense(), moment)
    assert largest.numbers <= most < B * M
    if part:
        assert sae.l0 == (sae.encode(x) > 0).sum(1).float().mean()


def test_the_exponent_of_p_anneal_falls_in_ten_steps_and_keeps_the_penalty() -> None:
    sae = trained_like("p_anneal")
    x, y = batch(sae)
    config = TrainConfig(
        M, 100 * B, architecture="p_anneal", options={"p_end": 0.5, "anneal_from": 0.2}, batch_tokens=B
    )
    seen = {round(sae.exponent(Moment(config, step, DEAD)), 6) for step in range(100)}
    assert seen == {round(1 - 0.05 * n, 6) for n in range(11)}
    assert sae.exponent(Moment(config, 19, DEAD)) == 1.0
    penalties = []
    for step, part in ((50, None), (99, 7)):
        moment = Moment(dataclasses.replace(config, micro_batch_tokens=part), step, DEAD)
        support = sae.support(x)
        sae.observe(x, support, moment)
        fit = sae.fit(x, y, support, moment)
        penalties.append((fit.loss - fit.parts["mse"]).item())
    assert penalties[0] == pytest.approx(penalties[1], rel=1e-4)


def test_the_levels_of_a_matryoshka_are_halves() -> None:
    assert build("matryoshka", D, 40, k=2, levels=4).widths == [5, 10, 20, 40]
    assert build("matryoshka", D, 5, k=2, levels=12).widths == [1, 2, 3, 5]


def test_a_skip_connection_starts_at_nothing() -> None:
    sae = build("skip_transcoder", D, M, d_out=D_OUT, k=K)
    assert sae.W_skip.shape == (D_OUT, D) and not sae.W_skip.any()


def test_an_unknown_architecture_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="'relu' is no architecture: there are topk, batchtopk"):
        class_of("relu")


@pytest.mark.parametrize("name", NAMES)
def test_the_table_names_options_that_exist_with_presets_that_are_allowed(name) -> None:
    for option, preset in ARCHITECTURES[name].presets.items():
        assert OPTIONS[option].wrong(preset) == ""
    assert {option for option in class_of(name).TAKES if option != "parts"} <= ARCHITECTURES[name].presets.keys()


def test_a_target_l0_falls_from_half_of_the_latents_and_pulls_none_up_on_its_way() -> None:
    config = config_of("jumprelu", target_l0=5.0, sparsity_warmup_share=0.5)
    assert (config.steps, M / 2) == (16, 20)
    aims = {0: 5 * 4 ** (7 / 8), 3: 10.0, 7: 5.0}  # an eighth, a half, all of the way
    sae = trained_like("jumprelu")
    for l0 in (4.0, 12.0, 25.0):
        for step, aim in aims.items():
            sae.l0 = torch.tensor(l0)
            own = torch.tensor(l0, requires_grad=True)
            sae.squared_miss(own, Moment(config, step, DEAD)).backward()
            miss = l0 / aim - 1
            assert own.grad.item() == pytest.approx(2 / aim * (miss if step == 7 else max(0.0, miss)), rel=1e-5)


# ---- choosing


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 400), share=st.floats(0.1, 8), seed=st.integers(0, 99), skewed=st.booleans())
def test_the_largest_of_a_batch_are_exact_however_they_lie(rows, share, seed, skewed) -> None:
    """Skewed: all are in the last rows, where the first guess does not look."""
    torch.manual_seed(seed)
    x = torch.randn(rows, 3)
    if skewed:
        x[: rows // 2] *= 100
        x[rows // 2 :] *= 0.01
        x = x.flip(0)
    encoder = Linear(torch.randn(24, 3), torch.zeros(24), None)
    n = max(1, int(share * rows))
    support, least = largest_of_batch(x, encoder, n, None)
    a = (x @ encoder.W.T).clamp_min(0)
    wanted = a.flatten().topk(min(n, a.numel())).values
    wanted = wanted[wanted > 0]
    got = a[support.rows, support.latents].sort(descending=True).values
    assert torch.allclose(got, wanted)
    assert least == pytest.approx(wanted.min().item() if len(wanted) else 0.0)


def test_ties_do_not_let_more_through_than_asked_for() -> None:
    encoder = Linear(torch.ones(8, 1), torch.zeros(8), None)
    support, least = largest_of_batch(torch.ones(4, 1), encoder, 10, None)
    assert len(support.latents) == 10 and least == 1.0
    assert torch.equal(support.rows, torch.tensor([0] * 8 + [1] * 2))


# ---- reviving the dead


def test_reviving_gives_gradients_to_dead_latents_only_and_to_their_encoder_rows_too() -> None:
    sae = trained_like("topk")
    x, _ = batch(sae)
    revive(sae, x, (x - sae(x)).detach(), DEAD).backward()
    touched = torch.zeros(M, dtype=torch.bool)
    touched[DEAD] = True
    for gradient in (sae.W_enc.grad, sae.W_dec.grad):
        assert torch.equal(gradient.abs().sum(1) > 0, touched)
    assert sae.b_dec.grad is None


def test_the_aux_loss_is_that_of_the_formula(sae) -> None:
    sae = sae.double()
    x, y = batch(sae, torch.float64)
    residual = torch.randn_like(y)
    w = sae.state_dict()
    a = ((x - w["b_dec"] if sae.centred else x) @ w["W_enc"].T + w["b_enc"])[:, DEAD]
    n = min(3, max(1, sae.d_out // 2))
    strength = a * sae.decoder_norms()[DEAD]
    f = (a if sae.signed else a.relu()) * kept(strength.abs() if sae.signed else strength, n)
    wanted = error(residual, f @ w["W_dec"][DEAD]) / error(residual, residual.mean(0))
    assert revive(sae, x, residual, DEAD).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_no_residual_left_gives_a_finite_aux_loss() -> None:
    sae = trained_like("topk")
    assert torch.isfinite(revive(sae, batch(sae)[0], torch.zeros(B, D), torch.tensor([1])))


# ---- scales and centres


def test_the_geometric_median_is_not_moved_by_an_outlier() -> None:
    torch.manual_seed(0)
    x = torch.randn(501, 3)
    x[0] = 1e6
    assert geometric_median(x).norm() < 0.3 < x.mean(0).norm()


def test_scaled_inputs_have_the_mean_norm_of_a_unit_gaussian() -> None:
    x = torch.randn(200, 16) * 37
    assert (x * input_scale(x)).norm(dim=1).mean().item() == pytest.approx(4)


def test_all_zero_activations_are_an_error() -> None:
    with pytest.raises(ValueError, match="all activations are zero"):
        input_scale(torch.zeros(4, 3))
