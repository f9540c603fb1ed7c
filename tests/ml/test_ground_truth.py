import pytest
import torch

from jobs.ml.architectures import build
from jobs.ml.config import Member, TrainConfig
from jobs.ml.ground_truth import Features
from jobs.ml.sae import Sae
from jobs.ml.sites import Site
from jobs.ml.train import Trainer


def trained_on(features: Features, config: TrainConfig) -> Sae:
    trainer = Trainer(Member(config, ("x",)), {"x": Site("x", features.dimensions, "", "input")})
    for step in range(config.steps):
        batch = {"x": features.draw(config.batch_tokens, step)}
        if step == 0:
            trainer.begin(batch, batch)
        trainer.update(batch, step)
    return trainer.export()


def test_features_are_unit_and_as_many_are_active_as_was_asked_for() -> None:
    features = Features(n=200, dimensions=64, active=6)
    assert torch.allclose(features.directions.norm(dim=1), torch.ones(200))
    assert features.rates.sum() == pytest.approx(6, rel=1e-5)
    x = features.draw(1000, 1)
    assert torch.equal(x, features.draw(1000, 1)) and not torch.equal(x, features.draw(1000, 2))


def test_the_features_themselves_are_recovered_and_random_rows_are_not() -> None:
    features = Features(n=100, dimensions=64, active=4)
    order = torch.randperm(100)
    assert features.recovered(3 * features.directions[order]) == {
        "mmcs": pytest.approx(1), "mcc": pytest.approx(1), "found": 1.0
    }  # fmt: skip
    chance = features.recovered(torch.randn(100, 64, generator=torch.Generator().manual_seed(9)))
    assert chance["mcc"] < 0.5 > chance["mmcs"]


def test_a_row_that_stands_for_two_features_cannot_serve_twice() -> None:
    features = Features(n=2, dimensions=16, active=1)
    features.directions[1] = features.directions[0]
    rows = torch.stack([features.directions[0], torch.zeros(16).index_fill_(0, torch.tensor([0]), 1.0)])
    found = features.recovered(rows)
    assert found["mmcs"] == pytest.approx(1)
    assert found["mcc"] < 0.9


def test_fewer_rows_than_features_have_no_matching() -> None:
    features = Features(n=20, dimensions=16, active=2)
    assert features.recovered(features.directions[:10])["mcc"] is None


def test_a_trained_sae_finds_features_that_are_few() -> None:
    features = Features(n=64, dimensions=32, active=3)
    config = TrainConfig(64, 256 * 400, options={"k": 3}, batch_tokens=256, lr=3e-3)
    assert features.recovered(trained_on(features, config).W_dec)["mcc"] > 0.7


def test_a_training_does_not_begin_with_the_features_whatever_seeds_both_have() -> None:
    features = Features(n=64, dimensions=32, active=3)
    sae = build("topk", 32, 64, k=3)
    sae.initialise(features.seed, torch.zeros(32), torch.zeros(32))
    assert features.recovered(sae.W_dec)["mcc"] < 0.6


@pytest.mark.parametrize("steps", [100, 400])
def test_a_jumprelu_comes_near_the_l0_that_it_aims_at_in_however_few_steps(steps) -> None:
    features = Features(n=256, dimensions=64, active=6)
    config = TrainConfig(256, 128 * steps, "jumprelu", {"target_l0": 6.0}, batch_tokens=128)
    active = trained_on(features, config).active(features.draw(1000, steps))
    assert 3 < len(active.values) / 1000 < 12
