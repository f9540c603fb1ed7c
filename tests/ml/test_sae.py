import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.ml.sae import ARCHITECTURES, Sae, build, geometric_median, input_scale, revive

B, D, M, K = 64, 12, 40, 5


def trained_like(architecture: str, seed: int = 0) -> Sae:
    """Weights without any special structure."""
    torch.manual_seed(seed)
    sae = build(architecture, D, M, K)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
        sae.W_dec *= torch.rand(M, 1) * 3 + 0.1
    return sae


@pytest.fixture(params=list(ARCHITECTURES))
def sae(request: pytest.FixtureRequest) -> Sae:
    return trained_like(request.param)


def dense_topk(sae: Sae, x: torch.Tensor) -> torch.Tensor:
    """f [B, M] by the book, differentiable throughout."""
    a = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    kept = (a * sae.W_dec.norm(dim=1)).topk(K, dim=1).indices
    return torch.zeros_like(a).scatter(1, kept, a.gather(1, kept)).relu()


def gradients(sae: Sae) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}


def test_the_sparse_gradients_of_topk_are_those_of_the_dense_formula() -> None:
    sae, x = trained_like("topk"), torch.randn(B, D)
    fit = sae.fit(x, 0.0)
    fit.loss.backward()
    sparse = gradients(sae)
    sae.zero_grad()
    x_hat = dense_topk(sae, x) @ sae.W_dec + sae.b_dec
    loss = (x - x_hat).square().sum(1).mean()
    loss.backward()
    assert torch.allclose(fit.loss, loss, rtol=1e-5)
    assert torch.allclose(fit.x_hat, x_hat, atol=1e-5)
    for name, gradient in gradients(sae).items():
        assert torch.allclose(sparse[name], gradient, rtol=1e-4, atol=1e-4), name


def test_the_gradients_of_relu_and_l1_are_those_of_the_plain_formula() -> None:
    sae, x = trained_like("standard"), torch.randn(B, D)
    sae.fit(x, 0.7).loss.backward()
    found = gradients(sae)
    sae.zero_grad()
    f = ((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc).relu()
    error = (x - f @ sae.W_dec - sae.b_dec).square().sum(1).mean()
    (error + 0.7 * (f * sae.W_dec.norm(dim=1)).sum(1).mean()).backward()
    for name, gradient in gradients(sae).items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-4), name


def test_topk_keeps_the_k_latents_that_write_most() -> None:
    sae, x = trained_like("topk"), torch.randn(B, D)
    f = sae.encode(x)
    assert torch.allclose(f, dense_topk(sae, x), atol=1e-5)
    assert (f > 0).sum(1).max() == K
    assert f.min() == 0


def test_active_is_encode_without_its_zeros(sae) -> None:
    x = torch.randn(B, D)
    codes = sae.active(x)
    assert (codes.values > 0).all()
    assert torch.equal(codes.rows, codes.rows.sort().values)
    dense = torch.zeros(B, M).index_put((codes.rows, codes.latents), codes.values)
    assert torch.equal(dense, sae.encode(x))
    assert torch.allclose(sae.decode_active(codes, B), sae(x), atol=1e-5)


def test_rows_without_any_active_latent_are_rebuilt_as_the_bias() -> None:
    sae, x = trained_like("standard"), torch.randn(B, D)
    with torch.no_grad():
        sae.b_enc -= 6
        x[[0, B // 2, B - 1]] = sae.b_dec
        codes = sae.active(x)
        assert torch.bincount(codes.rows, minlength=B)[[0, B // 2, B - 1]].sum() == 0
        assert torch.allclose(sae.decode_active(codes, B), sae(x), atol=1e-4)


def test_forward_is_decode_of_encode(sae) -> None:
    x = torch.randn(B, D)
    assert torch.allclose(sae(x), sae.decode(sae.encode(x)), atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(deadline=None, max_examples=20)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_folding_changes_nothing_but_the_units(architecture, scale, seed) -> None:
    sae = trained_like(architecture, seed)
    x = torch.randn(B, D) / scale  # training saw scale * x
    folded = sae.folded(scale)
    wanted = sae(scale * x) / scale
    assert torch.allclose(folded(x), wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())
    assert torch.allclose(folded.W_dec.norm(dim=1), torch.ones(M), atol=1e-5)
    assert torch.equal(folded.encode(x) > 0, sae.encode(scale * x) > 0)


def test_folding_twice_is_folding_once(sae) -> None:
    once = sae.folded(3.0)
    assert all(torch.allclose(a, b) for a, b in zip(once.parameters(), once.folded().parameters(), strict=True))


def test_a_fit_counts_the_rows_on_which_each_latent_fires(sae) -> None:
    x = torch.randn(B, D)
    assert torch.equal(sae.fit(x, 1.0).fired, (sae.encode(x) > 0).sum(0).float())


def test_it_starts_with_encoder_and_decoder_alike_and_the_centre_as_bias(sae) -> None:
    centre = torch.arange(D).float()
    sae.initialise(seed=3, b_dec=centre)
    assert torch.equal(sae.W_enc, sae.W_dec)
    assert torch.equal(sae.b_dec, centre)
    assert not sae.b_enc.any()
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.full((M,), 0.1))


def test_reviving_gives_gradients_to_dead_latents_only_and_to_their_encoder_rows_too() -> None:
    sae, x = trained_like("topk"), torch.randn(B, D)
    dead = torch.tensor([2, 7, 30])
    residual = (x - sae(x)).detach()
    revive(sae, x, residual, dead).backward()
    touched = torch.zeros(M, dtype=torch.bool)
    touched[dead] = True
    for gradient in (sae.W_enc.grad, sae.W_dec.grad):
        assert torch.equal(gradient.abs().sum(1) > 0, touched)
    assert sae.b_dec.grad is None


def test_the_aux_loss_is_one_for_no_help_and_zero_for_a_perfect_one() -> None:
    sae = build("topk", D, M, K)
    x = torch.randn(B, D)
    residual = x - x.mean(0)
    dead = torch.arange(2 * D)
    with torch.no_grad():
        sae.b_dec += 5  # must not matter
    assert revive(sae, x, residual, dead).item() == pytest.approx(1)
    with torch.no_grad():  # latents that copy every dimension with either sign
        sae.W_enc[: 2 * D] = torch.cat([torch.eye(D), -torch.eye(D)])
        sae.W_dec[: 2 * D] = torch.cat([torch.eye(D), -torch.eye(D)])
        sae.b_enc[: 2 * D] = sae.W_enc[: 2 * D] @ (sae.b_dec - x.mean(0))
    wide = build("topk", 4 * D, M, K)  # allows D/2 of its own inputs: enough for all 2 D latents
    wide.W_enc.data[:, :D], wide.W_dec.data[:, :D], wide.b_enc.data = sae.W_enc.data, sae.W_dec.data, sae.b_enc.data
    wide.b_dec.data[:D] = sae.b_dec.data
    padded, rest = torch.zeros(B, 4 * D), torch.zeros(B, 4 * D)
    padded[:, :D], rest[:, :D] = x, residual
    assert revive(wide, padded, rest, dead).item() == pytest.approx(0, abs=1e-6)


def test_no_residual_left_gives_a_finite_aux_loss() -> None:
    sae, x = trained_like("topk"), torch.randn(B, D)
    assert torch.isfinite(revive(sae, x, torch.zeros(B, D), torch.tensor([1])))


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


def test_an_unknown_architecture_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="topk, standard"):
        build("gated", D, M)
