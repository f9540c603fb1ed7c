"""The kind that evaluates an SAE, from files to files, with the real context and no database."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.context import Context
from jobs.errors import Cancelled, InvalidInput
from jobs.kinds import evaluate_sae, make_params
from jobs.ml import store
from jobs.ml.evaluate import evaluate
from jobs.ml.language_model import load_model
from jobs.ml.saelens import save_sae
from jobs.ml.tokens import TokenShards
from tests.ml.test_evaluate import SITE, random_sae
from tests.ml.test_probing import reviews
from tests.ml.tiny import WORDS, save_model, tiny_model, tiny_tokens


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, tokens, an SAE that was not trained, and labelled texts."""
    home = tmp_path_factory.mktemp("home")
    save_model(tiny_model("llama"), home / "model")
    tiny_tokens(home / "tokens")
    save_sae(random_sae(), home / "sae", reads=[SITE])
    (home / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews(240)))
    return home


def params(home: Path, name: Path | str, **changes: Any) -> evaluate_sae.Params:
    values = {
        "model_folder": str(home / "model"), "tokens_folder": str(home / "tokens"), "sae_folder": str(home / "sae"),
        "folder": str(home / name), "reads": [SITE], "tokens": 2000, "model_batch": 8,
    }  # fmt: skip
    return make_params(evaluate_sae, values | changes)


def labelled(home: Path, name: Path | str, **changes: Any) -> evaluate_sae.Params:
    source = {"labelled": str(home / "reviews.jsonl"), "text_column": "review", "label_column": "stars"}
    return params(home, name, **source | {"absorption": True} | changes)


class Counting(Context):
    """Wishes to end after so many questions; notes the stages."""

    def __init__(self, after: int = 10**9) -> None:
        super().__init__(1, 1, evaluate_sae.STAGES)
        self.left, self.seen, self.percents = after, [], []

    def _recount(self) -> None:
        super()._recount()
        self.seen.append(self.snapshot.stage)
        self.percents.append(self.snapshot.percent)

    def check(self) -> None:
        self.left -= 1
        self.wished = "cancel" if self.left < 0 else ""
        super().check()


@pytest.fixture(scope="module")
def result(home) -> dict:
    return evaluate_sae.run(labelled(home, "whole"), Counting())


def test_the_figures_are_those_of_the_engine(home, result) -> None:
    plain = evaluate(
        load_model(home / "model"), random_sae(), SITE, TokenShards(home / "tokens", "held_out"),
        tokens=2000, ce_tokens=500,
    )  # fmt: skip
    for name in ("l0", "l1", "explained_variance", "ce_recovered", "kl_recovered", "cosine"):
        assert result["figures"][name]["value"] == pytest.approx(plain[name], rel=1e-4)
    assert result["counts"]["tokens"] == plain["tokens"] and result["counts"]["ce_tokens"] == plain["ce_tokens"]
    assert result["drawn"]["unit"] == "documents"


def test_labelled_texts_give_probes_and_latents_of_each_class(result) -> None:
    assert result["figures"]["sparse_probing_accuracy_5"]["value"] > 0.6
    assert "tpp_2" in result["figures"] and not any(name.startswith("scr") for name in result["figures"])
    assert [one["label"] for one in result["classes"]] == ["0", "1", "2"]
    assert result["texts"]["train"] + result["texts"]["test"] == 240
    assert result["not_measured"]["scr"] == "no column with second labels was chosen"


def test_second_labels_give_scr_or_the_harm_that_is_too_small_for_it(home) -> None:
    rows = [
        {"review": f"{'green hills' if n % 2 else 'the cat sat'} {'rain fell softly' * (n // 2 % 2)} {n}",
         "topic": n % 2, "weather": n // 2 % 2}
        for n in range(400)
    ]  # fmt: skip
    (home / "topics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"labelled": str(home / "topics.jsonl"), "label_column": "topic", "second_label_column": "weather"}
    found = evaluate_sae.run(labelled(home, "topics", absorption=False, **source), Counting())
    harm = found["figures"]["spurious_harm"]
    assert ("scr_2" in found["figures"]) == (harm["low"] > 0) == ("scr" not in found["not_measured"])


def test_what_cannot_be_measured_says_why(home, result) -> None:
    assert result["not_measured"]["absorption"].startswith("the tokenizer has fewer than two letters")
    plain = evaluate_sae.run(params(home, "plain"), Counting())
    assert plain["not_measured"] == {
        "labels": "no labelled dataset was chosen", "absorption": "it was not asked for"
    }  # fmt: skip


def test_the_stages_are_those_of_the_kind_and_the_percentage_never_falls(home) -> None:
    ctx = Counting()
    evaluate_sae.run(labelled(home, "stages"), ctx)
    assert set(ctx.seen) <= set(evaluate_sae.STAGES)
    assert ctx.percents == sorted(ctx.percents)


def test_cancelled_at_any_place_it_goes_on_and_ends_with_the_same_figures(home, result) -> None:
    for after in (3, 20, 40, 10**9):
        ctx = Counting(after)
        if after < 10**9:
            with pytest.raises(Cancelled):
                evaluate_sae.run(labelled(home, "again"), ctx)
    again = evaluate_sae.run(labelled(home, "again"), Counting())
    assert again["figures"] == result["figures"] and again["classes"] == result["classes"]
    before = (home / "again" / "figures.json").stat().st_mtime_ns
    assert evaluate_sae.run(labelled(home, "again"), Counting()) == again
    assert (home / "again" / "figures.json").stat().st_mtime_ns == before
    assert store.read_manifest(home / "again")["files"].keys() == {"figures.json"}


def test_another_evaluation_in_the_folder_starts_anew(home) -> None:
    one = evaluate_sae.run(params(home, "other"), Counting())
    two = evaluate_sae.run(params(home, "other", split="train"), Counting())
    assert two["figures"]["fvu"] != one["figures"]["fvu"]


def test_what_the_machine_needed_is_told(result) -> None:
    assert result["measured"]["load_seconds"] > 0
    assert result["measured"]["runs"]["8"]["tokens_per_second"] > 0
    assert result["dtype"] == "float32"


def test_with_too_little_memory_fewer_sequences_are_read_at_once(home) -> None:
    assert evaluate_sae.smaller(params(home, "x")).model_batch == 4
    assert evaluate_sae.smaller(params(home, "x", model_batch=1)) is None
    assert evaluate_sae.smaller(params(home, "plain", model_batch=None)).model_batch == 4


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tokens": 0}, "tokens"),
        ({"split": "test"}, "split"),
        ({"dtype": "float8"}, "dtype"),
        ({"folder": "here"}, "folder"),
        ({"labelled": "/data/x.csv"}, "text_column"),
        ({"labelled": "/data/x.csv", "text_column": "text"}, "label_column"),
        ({"labelled": "not a source", "text_column": "text", "label_column": "y"}, "source"),
    ],
)
def test_wrong_parameters_are_refused_with_their_field(home, changes, field) -> None:
    with pytest.raises(InvalidInput) as refused:
        params(home, "x", **changes)
    assert refused.value.field == field


def test_a_label_column_that_is_not_there_is_refused_in_the_words_of_the_form(home) -> None:
    with pytest.raises(InvalidInput, match="no column “colour”. It has: review, stars") as refused:
        evaluate_sae.run(labelled(home, "refused", label_column="colour"), Counting())
    assert refused.value.field == "label_column"


def test_absorption_of_a_model_that_cannot_spell_is_not_measured(home, tmp_path) -> None:
    """Its embeddings are random, so its words can be told by heart alone: that is no spelling."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [f" {first}{second}{third}" for first in "abcd" for second in "aeioudlmn" for third in "abcdef"]
    pieces = ["<s>", "</s>", "<pad>", "<unk>", *words, *(f" {word}" for word in WORDS)]
    vocabulary = {piece.replace(" ", "Ġ"): n for n, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    save_model(tiny_model("llama"), tmp_path / "model")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
    fast.save_pretrained(tmp_path / "model")
    mine = params(home, tmp_path / "x", model_folder=str(tmp_path / "model"), absorption=True)
    found = evaluate_sae.run(mine, Counting())
    assert "words can be read off the activations in" in found["not_measured"]["absorption"]
