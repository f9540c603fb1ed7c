import numpy as np
import pytest
import torch

from jobs.ml import bootstrap
from jobs.ml.bootstrap import Formula, UnitSums, ratio
from jobs.ml.boundaries import Boundaries
from jobs.ml.directions import similarity
from jobs.ml.evaluate import evaluate, measure
from jobs.ml.packing import pack
from jobs.ml.reconstruction import Reconstruction
from jobs.ml.sequences import batches
from jobs.ml.tokens import TokenShards
from tests.ml.test_evaluate import SITE, D, M, copying_sae, random_sae
from tests.ml.tiny import decoder_tokenizer, documents, tiny_model

MEAN = Formula("mean", 1, lambda s: ratio(s["x"], s["n"]))


def summed(units, x, dimensions: int = 0, vectors=None) -> UnitSums:
    sums = UnitSums(["x"], dimensions, "cpu")
    for part in torch.arange(len(x)).split(37):
        sums.add(units[part], {"x": x[part]}, None if vectors is None else vectors[part])
    return sums


def test_the_interval_is_that_of_documents_drawn_one_by_one() -> None:
    """The plain way, in a loop, with the same seed."""
    torch.manual_seed(0)
    units, x = torch.arange(50).repeat_interleave(7), torch.randn(350).double() + torch.arange(350) / 100
    found = summed(units, x).figures([MEAN])["mean"]
    per_unit = x.view(50, 7).sum(1).numpy()
    random, means = np.random.default_rng(0), []
    for _ in range(1000):
        times = random.multinomial(50, np.full(50, 1 / 50))
        means.append((times * per_unit).sum() / (times.sum() * 7))
    low, high = np.percentile(means, [2.5, 97.5])
    assert found["value"] == pytest.approx(x.mean().item())
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))
    assert found["n"] == 350 and found["formula"] == "mean/1"


def test_an_interval_holds_the_true_mean_about_nineteen_times_of_twenty() -> None:
    torch.manual_seed(0)
    held = 0
    for _ in range(200):
        units = torch.arange(60).repeat_interleave(5)
        x = (torch.randn(60).repeat_interleave(5) + 0.3 * torch.randn(300)).double()
        found = summed(units, x).figures([MEAN], resamples=400)["mean"]
        held += found["low"] <= 0 <= found["high"]
    assert 180 <= held <= 198


def test_tokens_of_one_document_count_as_one_draw() -> None:
    torch.manual_seed(0)
    x = torch.randn(40).repeat_interleave(50).double()
    narrow = summed(torch.arange(2000), x).figures([MEAN])["mean"]
    wide = summed(torch.arange(40).repeat_interleave(50), x).figures([MEAN])["mean"]
    assert wide["high"] - wide["low"] > 4 * (narrow["high"] - narrow["low"])


def test_the_same_seed_gives_the_same_interval_and_few_documents_none() -> None:
    x = torch.arange(90).double()
    one, two = (summed(torch.arange(90), x).figures([MEAN]) for _ in range(2))
    assert one == two
    few = summed(torch.arange(9).repeat_interleave(10), x).figures([MEAN])["mean"]
    assert few["value"] == 44.5 and few["low"] is few["high"] is None


def test_very_many_documents_are_taken_together_and_the_figure_stays(monkeypatch) -> None:
    x, vectors = torch.randn(3000).double(), torch.randn(3000, 4).double()
    plain = summed(torch.arange(3000), x, 4, vectors)
    monkeypatch.setattr(bootstrap, "MOST", 256)
    merged = summed(torch.arange(3000), x, 4, vectors)
    assert merged.about("documents") == {"unit": "documents", "n": 188, "in_each": 16}
    assert merged.n == plain.n == 3000
    one, two = (sums.figures([MEAN])["mean"] for sums in (plain, merged))
    assert one["value"] == pytest.approx(two["value"])
    assert two["high"] - two["low"] == pytest.approx(one["high"] - one["low"], rel=0.2)


def test_no_document_is_lost_where_they_are_taken_together_after_a_long_text(monkeypatch) -> None:
    """Parts whose number makes the room for sums odd."""
    monkeypatch.setattr(bootstrap, "MOST", 256)
    sums = UnitSums(["x"], 0, "cpu")
    for units in (torch.arange(205), torch.arange(205, 411), torch.arange(411, 615)):
        sums.add(units, {"x": torch.ones(len(units)).double()})
    assert sums.n == 615


def test_a_ratio_without_a_whole_has_no_value() -> None:
    share = Formula("share", 1, lambda s: ratio(s["x"], s["x"]))
    found = summed(torch.arange(50), torch.zeros(50).double()).figures([share])["share"]
    assert found["value"] is found["low"] is None


# ---- which document a token belongs to


def packed(folder, **settings) -> TokenShards:
    texts = documents(120)
    options = {"context_length": 16, "held_out": 0.5, "shard_tokens": 320} | settings
    pack(lambda start: texts[start:], decoder_tokenizer(), folder, seed=0, **options)
    return TokenShards(folder, "held_out")


def numbered(shards: TokenShards) -> tuple[torch.Tensor, torch.Tensor]:
    boundaries = Boundaries(shards)
    reads = list(batches(shards, 0, shards.n_sequences, 3))
    return torch.cat([read.ids for read in reads]), torch.cat([boundaries.of(read) for read in reads])


def test_packed_documents_are_told_apart_by_what_stands_between_them(tmp_path) -> None:
    shards = packed(tmp_path)
    ids, units = numbered(shards)
    assert Boundaries(shards).unit == "documents"
    content, own = ids[:, 1:].flatten().tolist(), units[:, 1:].flatten().tolist()
    number, wanted = 0, []
    for token in content:  # 1 is the end of a text
        wanted.append(number)
        number += token == 1
    assert own == wanted
    assert number > 30


def test_padded_documents_are_their_rows_and_windows_are_sequences(tmp_path) -> None:
    shards = packed(tmp_path / "padded", layout="padded")
    _, units = numbered(shards)
    assert Boundaries(shards).unit == "documents"
    assert units.unique(dim=1).flatten().tolist() == list(range(shards.n_sequences))
    windows = packed(tmp_path / "windows", layout="padded", stride=4)
    assert Boundaries(windows).unit == "sequences"


def test_without_a_separator_sequences_are_drawn_and_the_result_says_so(tmp_path) -> None:
    shards = packed(tmp_path, separator="none")
    found = measure(tiny_model("gpt2"), random_sae(), SITE, shards)
    assert found["drawn"] == {"unit": "sequences", "n": shards.n_sequences, "in_each": 1}


# ---- the figures of an SAE


@pytest.fixture(scope="module")
def shards(tokens) -> TokenShards:
    return TokenShards(tokens, "held_out")


@pytest.fixture(scope="module")
def found(shards) -> dict:
    return measure(tiny_model("gpt2"), random_sae(), SITE, shards, ce_tokens=10**6)


def test_every_figure_of_tokens_has_an_interval_around_it_and_its_formula(found) -> None:
    for name, one in found["figures"].items():
        if "decoder" in name or "duplicates" in name:
            assert one["low"] is one["high"] is None and one["n"] == M
            continue
        assert one["low"] < one["value"] < one["high"] or (name == "l0" and one["low"] == one["high"] == 6)
        kind = "ce_tokens" if name.startswith(("ce", "kl")) else "tokens"
        assert one["n"] == found["counts"][kind]
        assert one["formula"].rpartition("/")[0] == name
    assert found["drawn"]["unit"] == "documents"


def test_without_intervals_the_figures_are_the_same_plain_numbers(found, shards) -> None:
    plain = evaluate(tiny_model("gpt2"), random_sae(), SITE, shards, ce_tokens=10**6)
    for name in ("fvu", "l0", "l1", "ce_recovered", "kl_recovered", "l2_ratio"):
        assert plain[name] == found["figures"][name]["value"]
    assert plain["kl_recovered"] == pytest.approx((plain["kl_zero"] - plain["kl_sae"]) / plain["kl_zero"])


def test_a_copy_recovers_the_divergence_and_shrinks_nothing(shards) -> None:
    figures = measure(tiny_model("gpt2"), copying_sae(), SITE, shards)["figures"]
    assert figures["kl_recovered"]["value"] == pytest.approx(1, abs=1e-5)
    for name in ("l2_ratio", "relative_reconstruction_bias", "cosine"):
        assert figures[name]["value"] == pytest.approx(1, abs=1e-6)


def test_the_histogram_of_densities_holds_every_latent_that_fires(found) -> None:
    histogram = found["density"]
    assert sum(histogram["counts"]) == found["counts"]["alive"]
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert histogram["edges"][-1] == 0 and 10 ** histogram["edges"][0] <= 1 / found["counts"]["tokens"]


def test_near_duplicates_are_those_whose_rows_point_the_same_way() -> None:
    sae = random_sae()
    rows = torch.nn.functional.normalize(sae.W_dec.double(), dim=1)
    nearest = (rows @ rows.T - 2 * torch.eye(M)).max(1).values
    figures = similarity(sae)
    assert figures["nearest_decoder_cosine"]["value"] == pytest.approx(nearest.mean().item(), abs=1e-6)
    assert figures["share_of_near_duplicates"]["value"] == (nearest > 0.9).double().mean()


# ---- where other definitions go wrong


def offset_activations(offset: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets [B, D] around a mean far from zero, as in a residual stream, and reconstructions that miss much of what
    they differ in."""
    torch.manual_seed(0)
    y = torch.randn(4000, D).double() + offset * torch.randn(D).sign()
    return y, y + 0.5 * torch.randn(4000, D).double()


def ours(y: torch.Tensor, y_hat: torch.Tensor) -> float:
    class Known(type(random_sae())):
        """An SAE whose reconstruction is given."""

        def decode_active(self, codes, x) -> torch.Tensor:
            return given[len(seen) - 1]

    sae, given, seen = random_sae(), y_hat.float().split(100), []
    sae.__class__ = Known
    quality = Reconstruction(sae)
    for n, part in enumerate(y.float().split(100)):
        seen.append(part)
        quality.add(part, part, torch.full((len(part),), n))
    return quality.figures()["explained_variance"]["value"]


def test_explained_variance_is_not_inflated_by_the_mean_as_in_older_peers() -> None:
    y, y_hat = offset_activations()
    plain = 1 - (y - y_hat).square().sum(1).mean() / (y - y.mean(0)).square().sum(1).mean()
    # As SAELens before 6.45.1 and SAEBench have it: the squared mean is that of a mean over dimensions as well, which
    # takes next to nothing off where dimensions have either sign.
    around_zero = 1 - (y - y_hat).square().sum(1).mean() / (y.square().sum(1).mean() - D * y.mean() ** 2)
    assert ours(y, y_hat) == pytest.approx(plain.item(), abs=1e-6) == pytest.approx(0.75, abs=0.01)
    assert around_zero > 0.97


def test_explained_variance_is_no_mean_over_batches() -> None:
    """A batch that is all alike has little variance of its own: its share goes far below zero, and a mean over batches
    with it. One ratio over all tokens is not moved."""
    y, y_hat = offset_activations()
    y[:100] = y[:1] + 0.01 * torch.randn(100, D)
    y_hat[:100] = y[:100] + 0.5 * torch.randn(100, D)
    shares = [
        1 - (a - b).square().sum() / (a - a.mean(0)).square().sum()
        for a, b in zip(y.split(100), y_hat.split(100), strict=True)
    ]
    plain = 1 - (y - y_hat).square().sum() / (y - y.mean(0)).square().sum()
    assert ours(y, y_hat) == pytest.approx(plain.item(), abs=1e-6)
    assert torch.stack(shares).mean() < -10
