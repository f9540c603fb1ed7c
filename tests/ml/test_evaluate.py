import math

import pytest
import torch
import torch.nn.functional as F

from jobs.ml.architectures import build
from jobs.ml.evaluate import evaluate
from jobs.ml.sae import Sae
from jobs.ml.sites import capture, replaced
from jobs.ml.tokens import TokenShards
from tests.ml.tiny import tiny_model

SITE, D, M = "blocks.1.hook_resid_post", 32, 96


@pytest.fixture(scope="module")
def shards(tokens) -> TokenShards:
    return TokenShards(tokens, "held_out")


@pytest.fixture(scope="module")
def model():
    return tiny_model("gpt2")


def random_sae(seed: int = 0) -> Sae:
    torch.manual_seed(seed)
    sae = build("topk", D, M, k=6)
    sae.initialise(seed, torch.randn(D), torch.zeros(D))
    with torch.no_grad():
        sae.W_enc *= 30
    return sae.folded().requires_grad_(False)


def copying_sae() -> Sae:
    """Every dimension with either sign: x_hat = x."""
    sae = build("standard", D, 2 * D)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(D), -torch.eye(D)]))
        sae.W_dec.copy_(sae.W_enc)
    return sae.folded().requires_grad_(False)


def measured(model, shards, sae, **options) -> dict:
    return evaluate(model, sae, SITE, shards, **{"tokens": 10**6, "ce_tokens": 10**6} | options)


def everything(model, shards) -> tuple[torch.Tensor, torch.Tensor]:
    ids, special = shards.rows(range(shards.n_sequences))
    return torch.from_numpy(ids).long(), torch.from_numpy(special)


@pytest.mark.parametrize("skip", [True, False])
def test_the_reconstruction_figures_are_those_of_all_tokens_taken_together(model, shards, skip) -> None:
    sae = random_sae()
    found = measured(model, shards, sae, skip_special=skip)
    ids, special = everything(model, shards)
    x = capture(model, SITE, ids).flatten(0, 1)
    x = x[~special.flatten()] if skip else x
    f, x_hat = sae.encode(x), sae(x).double()
    x = x.double()
    error = (x - x_hat).square().sum(1).mean()
    assert found["tokens"] == len(x)
    assert found["l0"] == pytest.approx((f > 0).sum(1).float().mean().item())
    assert found["fvu"] == pytest.approx((error / (x - x.mean(0)).square().sum(1).mean()).item(), rel=1e-5)
    assert found["explained_variance"] == pytest.approx(1 - found["fvu"])
    assert found["mse"] == pytest.approx(error.item(), rel=1e-5)
    assert found["cosine"] == pytest.approx(F.cosine_similarity(x, x_hat).mean().item(), rel=1e-5)
    assert found["l2_ratio"] == pytest.approx((x_hat.norm(dim=1) / x.norm(dim=1)).mean().item(), rel=1e-5)
    density = (f > 0).double().mean(0)
    assert found["dead"] == (density == 0).sum()
    assert found["dense"] == (density > 0.1).sum()
    assert found["dead"] + found["alive"] == M


def test_a_large_offset_does_not_look_like_explained_variance(shards) -> None:
    """Squares summed around zero would call the mean itself explained."""
    model = tiny_model("gpt2")
    model.transformer.h[1].mlp.c_proj.bias += 1000
    sae = build("topk", D, M, k=6).folded().requires_grad_(False)
    ids, special = everything(model, shards)
    sae.b_dec.copy_(capture(model, SITE, ids).flatten(0, 1)[~special.flatten()].double().mean(0))
    assert measured(model, shards, sae)["fvu"] == pytest.approx(1, rel=1e-3)


def test_a_copy_recovers_all_and_zero_nothing(model, shards) -> None:
    copied = measured(model, shards, copying_sae())
    assert copied["fvu"] == pytest.approx(0, abs=1e-9)
    assert copied["ce_recovered"] == pytest.approx(1, abs=1e-5)
    assert copied["kl_sae"] == pytest.approx(0, abs=1e-6)
    nothing = measured(model, shards, build("topk", D, M, k=6).folded().requires_grad_(False))
    assert nothing["ce_recovered"] == pytest.approx(0, abs=1e-6)
    assert nothing["kl_sae"] == pytest.approx(nothing["kl_zero"])
    assert nothing["dead"] == M


@pytest.mark.parametrize("skip", [True, False])
def test_cross_entropy_and_divergence_are_those_of_the_edited_model(model, shards, skip) -> None:
    sae = random_sae()
    found = measured(model, shards, sae, skip_special=skip)
    ids, special = everything(model, shards)
    keep = special if skip else torch.zeros_like(special)
    counted = ~keep[:, :-1]

    def log_p(new) -> torch.Tensor:
        with replaced(model, SITE, lambda x: torch.where(keep[..., None], x, new(x))):
            return model(input_ids=ids).logits[:, :-1].log_softmax(-1)[counted]

    clean = model(input_ids=ids).logits[:, :-1].log_softmax(-1)[counted]
    rebuilt, zero = log_p(lambda x: sae(x.flatten(0, 1)).view_as(x)), log_p(torch.zeros_like)
    targets = ids[:, 1:][counted]
    for way, values in (("clean", clean), ("sae", rebuilt), ("zero", zero)):
        assert found[f"ce_{way}"] == pytest.approx(F.nll_loss(values, targets).item(), rel=1e-5)
    for way, values in (("sae", rebuilt), ("zero", zero)):
        kl = F.kl_div(values, clean, log_target=True, reduction="batchmean").item()
        assert found[f"kl_{way}"] == pytest.approx(kl, rel=1e-4)
    recovered = (found["ce_zero"] - found["ce_sae"]) / (found["ce_zero"] - found["ce_clean"])
    assert found["ce_recovered"] == pytest.approx(recovered)
    assert found["ce_tokens"] == counted.sum()


def test_fewer_tokens_are_read_when_fewer_are_asked_for_and_said_to_be(model, shards) -> None:
    found = measured(model, shards, random_sae(), tokens=100, ce_tokens=40)
    assert 3 * 15 < found["tokens"] <= 7 * 15
    assert 0 < found["ce_tokens"] <= 3 * 15


def test_an_encoder_has_no_cross_entropy_and_the_result_says_why(shards) -> None:
    found = measured(tiny_model("bert"), shards, random_sae())
    assert found["ce_recovered"] is found["ce_clean"] is found["kl_sae"] is None
    assert found["ce_tokens"] == 0
    assert found["not_measured"] == {"ce": "BertModel does not predict the next token"}
    assert math.isfinite(found["fvu"])


def test_progress_goes_from_nothing_to_all_sequences(model, shards) -> None:
    seen = []
    measured(model, shards, random_sae(), on_progress=lambda done, total: seen.append((done, total)))
    total = 2 * shards.n_sequences
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (total, total)


def test_an_empty_split_is_an_error_that_says_what_to_do(model, tmp_path) -> None:
    from tests.ml.test_packing import documents, quickly

    quickly(documents(30), tmp_path, held_out=0.0)
    with pytest.raises(ValueError, match="held_out split has no sequences"):
        measured(model, TokenShards(tmp_path, "held_out"), random_sae())
