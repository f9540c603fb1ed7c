import itertools

import numpy as np
import pytest
import torch

from jobs.ml.architectures import build
from jobs.ml.assignment import best_assignment
from jobs.ml.labelled import Columns, local_rows, sample
from jobs.ml.logistic import fit
from jobs.ml.pooled import Pooled, pool, split
from jobs.ml.probing import KS, class_probes, scr, sparse_probing, tpp
from jobs.ml.sites import capture
from tests.ml.test_evaluate import SITE, random_sae
from tests.ml.tiny import decoder_tokenizer, tiny_model

D, M, N = 12, 30, 900


def told_apart(seed: int = 0, seconds: bool = False) -> tuple:
    """Texts of three classes; latent c is on in class c, and 3 in the half with a second label. Others are noise."""
    random = torch.Generator().manual_seed(seed)
    sae = build("standard", D, M).folded().requires_grad_(False)
    sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(M, D, generator=random), dim=1))
    sae.W_dec[:D].copy_(torch.eye(D))
    labels = torch.randint(2 if seconds else 3, (N,), generator=random)
    second = torch.randint(2, (N,), generator=random) if seconds else torch.zeros(N, dtype=torch.long)
    f = 0.3 * torch.rand(N, M, generator=random)
    f[torch.arange(N), labels] += 0.5
    f[:, 3] += 2.0 * second
    y = f @ sae.W_dec
    train = torch.rand(N, generator=random) < 0.7
    names = [f"class {n}" for n in range(int(labels.max()) + 1)]
    return sae, Pooled(y, f, labels, names, second, train)


def test_the_regression_is_the_minimum_of_its_loss() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 4).double() * torch.tensor([1.0, 5.0, 0.1, 2.0]) + 3
    y = torch.rand(400) < torch.sigmoid(x[:, 0] - 3 + 5 * (x[:, 2] - 3))
    probe = fit(x, y)
    scale = x.std(0, correction=0)
    w, b = (probe.weight * scale).requires_grad_(), (probe.bias + probe.weight @ x.mean(0)).requires_grad_()
    z = (x - x.mean(0)) / scale
    loss = torch.nn.functional.binary_cross_entropy_with_logits(z @ w + b, y.double(), reduction="sum")
    (loss + w.square().sum() / 2).backward()
    assert w.grad.abs().max() < 1e-3 and b.grad.abs() < 1e-3
    assert (probe.says(x) == y).double().mean() > 0.6


def test_a_column_that_never_changes_has_no_weight() -> None:
    x = torch.cat([torch.ones(50, 1), torch.linspace(-1, 1, 50)[:, None]], dim=1)
    probe = fit(x, x[:, 1] > 0)
    assert probe.weight[0] == 0 and bool(torch.isfinite(probe.weight).all())


def test_sparse_probing_finds_the_latent_of_each_class() -> None:
    _, pooled = told_apart()
    figures, classes = sparse_probing(pooled, class_probes(pooled))
    assert [one["latents"][0] for one in classes] == [0, 1, 2]
    for k in KS:
        one = figures[f"sparse_probing_accuracy_{k}"]
        assert one["low"] <= one["value"] <= one["high"] <= 1
        assert one["value"] > 0.97
        assert one["formula"] == "sparse_probing_accuracy/1"
    assert figures["probe_accuracy"]["value"] > 0.95
    assert figures["sparse_probing_f1_1"]["value"] == pytest.approx(
        figures["sparse_probing_accuracy_1"]["value"], abs=0.05
    )


def test_sparse_probing_of_noise_is_a_coin() -> None:
    _, pooled = told_apart()
    pooled.labels = pooled.labels[torch.randperm(N, generator=torch.Generator().manual_seed(5))]
    figures, _ = sparse_probing(pooled, class_probes(pooled))
    assert 0.4 < figures["sparse_probing_accuracy_1"]["value"] < 0.6


def test_accuracy_is_the_mean_over_the_classes_of_the_share_that_is_right() -> None:
    _, pooled = told_apart()
    shares = []
    for number in range(3):
        truth = pooled.labels == number
        rows, says = pooled.balanced(truth, train=True)
        tests, true = pooled.balanced(truth, train=False)
        probe = fit(pooled.f[rows][:, [number]], says)
        shares.append((probe.says(pooled.f[tests][:, [number]]) == true).double().mean().item())
    assert sparse_probing(pooled, class_probes(pooled))[0]["sparse_probing_accuracy_1"]["value"] == pytest.approx(
        np.mean(shares)
    )


def test_texts_to_train_on_are_never_tested() -> None:
    _, pooled = told_apart()
    for train in (True, False):
        rows, says = pooled.balanced(pooled.labels == 1, train=train)
        assert (pooled.train[rows] == train).all()
        assert says.sum() * 2 == len(says)


def test_taking_out_the_latents_of_a_class_harms_its_probe_alone() -> None:
    """The plain way, in loops."""
    sae, pooled = told_apart()
    figures = tpp(sae, pooled, class_probes(pooled))
    assert list(figures) == ["tpp_2", "tpp_5", "tpp_10", "tpp_20"]

    def accuracy(number: int, latents: list[int]) -> float:
        rows, truth = pooled.balanced(pooled.labels == number, train=False)
        changed = pooled.y[rows] - pooled.f[rows][:, latents] @ sae.W_dec[latents]
        return (probes[number].says(changed) == truth).double().mean().item()

    probes, chosen = [], []
    for number in range(3):
        rows, says = pooled.balanced(pooled.labels == number, train=True)
        probes.append(fit(pooled.y[rows], says))
        difference = pooled.f[rows][says].mean(0) - pooled.f[rows][~says].mean(0)
        effect = difference.double() * (sae.W_dec.double() @ probes[-1].weight)
        chosen.append(effect.topk(2).indices.tolist())
        assert number in chosen[-1]
    falls = [[accuracy(c, []) - accuracy(c, chosen[t]) for t in range(3)] for c in range(3)]
    others = [np.mean([falls[c][t] for c in range(3) if c != t]) for t in range(3)]
    assert figures["tpp_2"]["value"] == pytest.approx(np.mean([falls[t][t] - others[t] for t in range(3)]), abs=0.01)
    assert figures["tpp_2"]["low"] > 0.02


def test_latents_that_know_nothing_of_the_classes_have_no_effect_of_their_own() -> None:
    sae, pooled = told_apart()
    pooled.f = 0.3 * torch.rand(N, M, generator=torch.Generator().manual_seed(3))
    assert abs(tpp(sae, pooled, class_probes(pooled))["tpp_2"]["value"]) < 0.1


def test_taking_out_the_latent_of_the_second_label_removes_the_correlation() -> None:
    sae, pooled = told_apart(seconds=True)
    figures, why = scr(sae, pooled)
    assert not why
    assert figures["spurious_harm"]["low"] > 0.05
    assert figures["scr_2"]["low"] <= figures["scr_2"]["value"] <= figures["scr_2"]["high"]
    assert figures["scr_2"]["value"] > 0.8
    assert figures["scr_2"]["n"] == figures["spurious_harm"]["n"] < int((~pooled.train).sum())


def test_a_figure_counts_the_texts_that_were_asked_about() -> None:
    """The four cells of two pairs of labels, as many of each; of the third label none."""
    sae, pooled = told_apart(seconds=True)
    pooled.labels[::6] = 2
    pooled.names.append("class 2")
    cells = [~pooled.train & (pooled.labels == a) & (pooled.seconds == b) for a in (0, 1) for b in (0, 1)]
    figures, _ = scr(sae, pooled)
    assert figures["spurious_harm"]["n"] == 4 * min(int(cell.sum()) for cell in cells)


def test_a_fifth_of_each_label_is_there_to_test_with_its_share_of_the_second_labels() -> None:
    labels = torch.tensor([0] * 100 + [1] * 20 + [2] * 5)
    seconds = torch.arange(len(labels)) % 2
    test = ~split(labels, seconds)
    assert [int(test[labels == label].sum()) for label in range(3)] == [20, 4, 1]
    assert int(test[(labels == 0) & (seconds == 1)].sum()) == 10


def test_where_few_texts_have_room_there_are_fewer_classes_and_none_too_small(lay) -> None:
    rows = [{"review": f"text {n}", "stars": n % 5} for n in range(300)]
    columns = Columns("review", "stars")
    found = sample(local_rows(lay("reviews.jsonl", rows), columns), columns, texts=60)
    assert {label: [one for _, one, _ in found].count(label) for label in {one for _, one, _ in found}} == {
        "0": 20, "1": 20, "2": 20,
    }  # fmt: skip


def test_a_second_label_that_harms_no_probe_leaves_nothing_to_remove() -> None:
    sae, pooled = told_apart(seconds=True)
    pooled.y = pooled.y - 2 * pooled.f[:, 3:4] @ sae.W_dec[3:4] / 2  # no trace of it is left
    figures, why = scr(sae, pooled)
    assert list(figures) == ["spurious_harm"] and figures["spurious_harm"]["low"] <= 0
    assert "cannot be told from nothing" in why


def test_without_second_labels_there_is_no_correlation_to_remove_and_the_result_says_so() -> None:
    sae, pooled = told_apart()
    assert scr(sae, pooled) == ({}, "too few texts with each pair of the two commonest labels and second labels")


# ---- texts


def reviews(n: int = 120) -> list[dict]:
    return [
        {"review": f"the cat sat on a mat number {i}" if i % 3 else f"green hills while rain fell {i}", "stars": i % 3}
        for i in range(n)
    ]


def test_texts_and_labels_come_from_the_source_as_many_of_each_class(lay) -> None:
    source = lay("reviews.jsonl", reviews())
    found = sample(local_rows(source, Columns("review", "stars")), Columns("review", "stars"), texts=90)
    assert {label: sum(one[1] == label for one in found) for label in "012"} == {"0": 30, "1": 30, "2": 30}
    assert all((one[1] == "0") == one[0].startswith("green") for one in found)
    assert found == sample(local_rows(source, Columns("review", "stars")), Columns("review", "stars"), texts=90)


def test_csv_and_parquet_are_read_likewise(tmp_path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = reviews(60)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "reviews.parquet")
    columns = Columns("review", "stars")
    assert len(sample(local_rows(tmp_path / "reviews.parquet", columns), columns)) == 60
    text = "review,stars\n" + "".join(f"{row['review']},{row['stars']}\n" for row in rows)
    (tmp_path / "reviews.csv").write_text(text)
    assert len(sample(local_rows(tmp_path / "reviews.csv", columns), columns)) == 60


def test_a_row_that_cannot_be_read_has_no_label_and_costs_none_of_the_others(lay) -> None:
    source = lay("reviews.jsonl", reviews(60))
    lines = source.read_text().splitlines()
    source.write_text("\n".join([*lines[:5], '{"review": "torn', *lines[5:]]))
    columns = Columns("review", "stars")
    assert len(sample(local_rows(source, columns), columns)) == 60


@pytest.mark.parametrize(
    ("columns", "message", "field"),
    [
        (Columns("review", "rating"), "no column “rating”. It has: review, stars", "label_column"),
        (Columns("review", "review"), "fewer than two classes", "label_column"),
        (Columns("review", "stars", "sex"), "no column “sex”", "second_label_column"),
    ],
)
def test_a_wrong_column_is_named_with_those_there_are(lay, columns, message, field) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        sample(local_rows(lay("reviews.jsonl", reviews()), columns), columns)
    assert refused.value.field == field


def test_a_text_is_the_mean_over_its_tokens_that_are_not_special() -> None:
    from jobs.ml.place import find_place

    model, sae, tokenizer = tiny_model("gpt2"), random_sae(), decoder_tokenizer()
    texts = [("the cat sat on a mat", "a", ""), ("rain", "b", ""), ("old stones and green hills", "a", "")]
    pooled = pool(model, sae, find_place(model, sae, SITE), tokenizer, texts, model_batch=2)
    for n, (text, _, _) in enumerate(texts):
        ids = torch.tensor([[0, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        x = capture(model, SITE, ids)[0, 1:]
        assert torch.allclose(pooled.y[n], x.mean(0), atol=1e-4)
        assert torch.allclose(pooled.f[n], sae.encode(x).mean(0), atol=1e-4)
    assert pooled.labels.tolist() == [0, 1, 0] and pooled.names == ["a", "b"]


# ---- matching


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (5, 7), (6, 6)])
def test_the_assignment_is_the_best_of_all(shape) -> None:
    random = np.random.default_rng(sum(shape))
    for _ in range(20):
        gain = random.random(shape)
        found = best_assignment(gain)
        assert len(set(found.tolist())) == shape[0]
        every = itertools.permutations(range(shape[1]), shape[0])
        assert gain[range(shape[0]), found].sum() == pytest.approx(max(gain[range(shape[0]), p].sum() for p in every))
