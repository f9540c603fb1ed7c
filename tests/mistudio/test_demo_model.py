import inspect
import ipaddress
import json
import math
import socket
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from django.core.management import CommandError, call_command
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from jobs.ml.pretrain import (
    BOUNDARY,
    PROMPTS,
    Recipe,
    batches,
    held_out_figures,
    learning_rate,
    new_model,
    pretrain,
    split,
    token_stream,
    train_tokenizer,
)
from mistudio.demo.corpus import documents
from mistudio.management.commands.build_demo_model import BUNDLED

TINY = Recipe(steps=3, layers=1, width=16, inner=32, heads=2, vocabulary=300, context_length=32, rows=2)


@pytest.fixture(scope="module", autouse=True)
def settings_of_torch() -> Iterator[None]:
    """Training sets the number of threads and determinism for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUNDLED, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(BUNDLED, local_files_only=True, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return json.loads((BUNDLED / "training.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def held_out_text() -> str:
    """From titles that are held out in every Python."""
    sources = (ipaddress._BaseNetwork, ipaddress.IPv4Address, ipaddress.IPv4Network, tracemalloc.Snapshot)
    return "\n".join([topics["del"], topics["slicings"], *map(inspect.getsource, sources)])


@pytest.fixture(scope="module")
def topic_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "topics.jsonl"
    lines = [json.dumps({"title": title, "text": topics[title][:800]}) for title in sorted(topics)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_the_bundled_model_loads_without_a_network(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", _refuse)
    monkeypatch.setattr(socket.socket, "connect", _refuse)
    loaded = AutoModelForCausalLM.from_pretrained(BUNDLED)
    assert loaded.config.vocab_size == len(AutoTokenizer.from_pretrained(BUNDLED)) == 4096
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float16}


def test_the_bundled_model_takes_less_than_8_megabytes():
    files = {path.name: path.stat().st_size for path in BUNDLED.iterdir()}
    assert sum(files.values()) < 8_000_000
    assert {"model.safetensors", "config.json", "tokenizer.json", "training.json", "README.md"} <= set(files)


@pytest.mark.parametrize("text", ["def f(x):\n\treturn [x, 'ünïcode 🐍']\n\n\n", "  two  spaces ", "\x00\r\n", ""])
def test_the_tokenizer_gives_back_every_text(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_boundary_token_opens_documents_and_is_never_written_by_text_around_it(tokenizer):
    assert tokenizer.bos_token == tokenizer.eos_token == BOUNDARY
    assert tokenizer("a" + BOUNDARY + "b")["input_ids"].count(tokenizer.bos_token_id) == 1
    assert tokenizer.bos_token_id not in tokenizer("endoftext <| |>")["input_ids"]


def test_the_bundled_model_predicts_held_out_text_far_better_than_an_untrained_one(
    model, tokenizer, held_out_text, figures
):
    """The bound is the perplexity over all held-out text and half of it more: a small sample varies, and another
    Python words it a little differently. An untrained model is near the size of the vocabulary."""
    stream = token_stream([("", held_out_text)], tokenizer)
    n_bytes = len(held_out_text.encode())
    torch.manual_seed(0)
    untrained = LlamaForCausalLM(model.config)
    trained = held_out_figures(model, stream, n_bytes)
    assert trained["tokens"] > 5_000
    assert trained["perplexity"] < 1.5 * figures["measured_on_held_out"]["perplexity"]
    assert trained["perplexity"] < held_out_figures(untrained, stream, n_bytes)["perplexity"] / 50


def test_half_precision_changes_nothing_that_matters(tokenizer, model):
    ids = tokenizer(BOUNDARY + topics["del"], return_tensors="pt")["input_ids"][:, :256]
    half = AutoModelForCausalLM.from_pretrained(BUNDLED, local_files_only=True, dtype=torch.float16).eval()
    with torch.no_grad():
        losses = [float(net(input_ids=ids, labels=ids).loss) for net in (model, half)]
    assert losses[0] == pytest.approx(losses[1], abs=0.01)


@pytest.mark.slow
def test_the_figures_of_the_card_are_what_the_weights_give(model, tokenizer, figures):
    held_out = split((document.title, document.text) for document in documents())[1]
    measured = held_out_figures(
        model, token_stream(held_out, tokenizer), sum(len(text.encode()) for _, text in held_out)
    )
    stated = figures["measured_on_held_out"]
    same = (measured["tokens"], measured["bytes"]) == (stated["tokens"], stated["bytes"])
    assert measured["bits_per_byte"] == pytest.approx(stated["bits_per_byte"], abs=0.001 if same else 0.15)


def test_the_card_states_the_measured_figures_the_command_and_samples(figures):
    card = (BUNDLED / "README.md").read_text(encoding="utf-8")
    stated = figures["measured_on_held_out"]
    for text in (f"{stated['perplexity']:.2f} per token", f"{stated['bits_per_byte']:.4f}", figures["command"]):
        assert text in card
    assert f"{stated['tokens']:,} tokens" in card
    assert all(f"~~~text\n{prompt}" in card for prompt in PROMPTS)


def test_the_recorded_figures_fit_together(figures):
    stated = figures["measured_on_held_out"]
    assert stated["perplexity"] == pytest.approx(math.exp(stated["loss"]), rel=1e-3)
    bits = stated["loss"] * stated["tokens"] / math.log(2) / stated["bytes"]
    assert stated["bits_per_byte"] == pytest.approx(bits, abs=1e-3)
    assert figures["steps_done"] == figures["recipe"]["steps"]
    assert figures["curve"][-1] == [figures["steps_done"], stated["loss"]]
    losses = [loss for _, loss in figures["curve"]]
    assert losses[-1] < min(losses) + 0.01 < losses[0] - 1, "more steps made it better, or at least no worse"


@pytest.mark.slow
def test_the_command_gives_the_same_bytes_twice(topic_file, tmp_path, capsys):
    for name in ("one", "two"):
        call_command("build_demo_model", "--steps=3", "--json", f"--corpus={topic_file}", f"--output={tmp_path / name}")
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    text = capsys.readouterr().out
    facts = json.loads(text[: len(text) // 2])
    assert facts["steps_done"] == 3
    assert facts["command"] == "python manage.py build_demo_model --steps 3 --seed 0 --threads 1"
    assert not [path for path in (tmp_path / "one").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("option", ["--steps=0", "--threads=0", "--seed=-1", "--corpus=/nowhere.jsonl"])
def test_the_command_refuses_impossible_options(option, tmp_path):
    with pytest.raises(CommandError):
        call_command("build_demo_model", option, f"--output={tmp_path / 'model'}")
    assert not (tmp_path / "model").exists()


def test_another_seed_gives_other_weights(tmp_path, topic_file):
    texts = [json.loads(line) for line in topic_file.read_text(encoding="utf-8").splitlines()]
    for seed in (0, 1):
        recipe = Recipe(**{**_fields(TINY), "seed": seed})
        pretrain(((t["title"], t["text"]) for t in texts), tmp_path / str(seed), recipe, lambda line: None)
    weights = [(tmp_path / str(seed) / "model.safetensors").read_bytes() for seed in (0, 1)]
    assert weights[0] != weights[1]


def test_too_few_documents_are_refused(tmp_path):
    with pytest.raises(ValueError, match="too few documents"):
        pretrain([("only", "one")], tmp_path / "model", TINY)


def test_all_pieces_of_a_title_are_on_one_side():
    training, held_out = split((f"module{number % 500}", str(number)) for number in range(2000))
    assert not {title for title, _ in training} & {title for title, _ in held_out}
    assert len(training) + len(held_out) == 2000
    assert 10 <= len(held_out) <= 80


def test_the_learning_rate_warms_up_and_ends_at_a_hundredth():
    recipe = Recipe(steps=1000, warm_up=100, peak_rate=1.0)
    assert [learning_rate(step, recipe) for step in (1, 50, 100)] == [0.01, 0.5, 1.0]
    assert learning_rate(550, recipe) == pytest.approx(0.505)
    assert learning_rate(1000, recipe) == pytest.approx(0.01)
    assert learning_rate(1, TINY) == TINY.peak_rate


def test_an_epoch_holds_every_window_once_and_the_next_is_cut_anew():
    stream = np.arange(1000, dtype=np.int64)
    supply = batches(stream, 7777, Recipe(steps=1, context_length=11, rows=4))
    first, second = ([next(supply) for _ in range(24)] for _ in range(2))
    assert all(batch.shape == (4, 11) and (batch[:, 0] == 7777).all() for batch in first)
    seen = torch.cat(first)[:, 1:].flatten().tolist()
    assert len(set(seen)) == len(seen) == 960
    assert {row[1].item() for row in torch.cat(first)} != {row[1].item() for row in torch.cat(second)}


def test_held_out_figures_are_the_loss_that_transformers_computes(topic_file):
    texts = [(title, topics[title][:2000]) for title in ("del", "if", "pass")]
    tokenizer = train_tokenizer([text for _, text in texts], TINY)
    stream = token_stream(texts, tokenizer)
    torch.manual_seed(0)
    model = new_model(TINY, tokenizer).eval()
    losses, window = [], TINY.context_length - 1
    for first in range(1, len(stream), window):
        ids = torch.from_numpy(np.concatenate([stream[:1], stream[first : first + window]]))[None]
        losses += [float(model(input_ids=ids, labels=ids).loss.detach())] * (ids.shape[1] - 1)
    measured = held_out_figures(model, stream, n_bytes=1000)
    assert measured["tokens"] == len(losses) == len(stream) - 1
    assert measured["loss"] == pytest.approx(sum(losses) / len(losses), abs=2e-4)
    assert measured["bits_per_byte"] == pytest.approx(sum(losses) / math.log(2) / 1000, abs=1e-3)


def _fields(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in recipe.__dataclass_fields__}


def _refuse(*arguments: Any) -> None:
    raise OSError("no network")
