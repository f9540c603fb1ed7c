"""Documents in rows of their own: what is padded or repeated is there for the model and in no figure."""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jobs.ml import store
from jobs.ml.activation_cache import write_cache
from jobs.ml.activations import ActivationStream
from jobs.ml.cache_layout import shard_file, site_file
from jobs.ml.errors import Unusable
from jobs.ml.evaluate import evaluate
from jobs.ml.evidence import Evidence
from jobs.ml.packing import pack
from jobs.ml.scan import scan
from jobs.ml.sequences import alike, batch, covering
from jobs.ml.sites import capture
from jobs.ml.tokens import TokenShards
from tests.ml.test_evaluate import random_sae
from tests.ml.tiny import byte_tokenizer, decoder_tokenizer, documents, killed_at, tiny_model

BOS, EOS, PAD, SITE = 0, 1, 2, "blocks.1.hook_resid_post"


def padded(docs: list[str], folder: Path, tokenizer=None, **options) -> dict:
    options = {"context_length": 16, "held_out": 0.0, "shard_tokens": 4096, "layout": "padded"} | options
    return pack(lambda start: docs[start:], tokenizer or decoder_tokenizer(), folder, **options)


def ids_of(text: str) -> list[int]:
    return decoder_tokenizer()(text, add_special_tokens=False).input_ids


def every(folder: Path) -> tuple[TokenShards, np.ndarray, np.ndarray, np.ndarray]:
    shards = TokenShards(folder)
    numbers = range(shards.n_sequences)
    return shards, *shards.rows(numbers), shards.lengths(numbers)


def test_each_document_begins_a_row_of_its_own_and_what_is_too_long_is_cut_and_counted(tmp_path) -> None:
    docs = documents(80)
    statistics = padded(docs, tmp_path)
    _, ids, special, lengths = every(tmp_path)
    assert len(ids) == 80
    cut = 0
    for text, row, mask, length in zip(docs, ids, special, lengths, strict=True):
        wanted = ids_of(text)
        assert row[:length].tolist() == [BOS, *wanted[:15]]
        assert (row[length:] == PAD).all() and mask[length:].all()
        assert mask[:length].tolist() == [True, *[False] * (length - 1)]
        cut += max(0, len(wanted) - 15)
    assert statistics["dropped_tokens"] == cut > 0
    assert statistics["padding_tokens"] == (16 - lengths).sum()
    assert statistics["tokens"] == lengths.sum() == statistics["special_tokens"] + statistics["document_tokens"] - cut


@pytest.mark.parametrize("stride", [0, 1, 4])
def test_windows_cover_a_document_whole_and_count_every_token_once(tmp_path, monkeypatch, stride) -> None:
    monkeypatch.setattr("jobs.ml.pieces.PIECE", 70)  # documents come in pieces
    docs = [*documents(80), "", "cat"]
    statistics = padded(docs, tmp_path, stride=stride)
    _, ids, special, _ = every(tmp_path)
    counted = ids[~special].tolist()
    assert counted == [token for text in docs for token in ids_of(text)]
    assert statistics["dropped_tokens"] == 0
    assert (statistics["masked_tokens"] > 0) == (stride > 0)


def test_a_window_begins_with_the_last_tokens_of_the_one_before(tmp_path) -> None:
    text = " ".join(documents(3))
    padded([text], tmp_path, stride=4)
    shards, ids, special, lengths = every(tmp_path)
    for before, after in zip(ids[:-1], ids[1:], strict=True):
        assert before[12:].tolist() == after[1:5].tolist()
    assert special[1:, :5].all() and not special[1:-1, 5:].any()
    assert shards.masked(np.arange(len(ids)))[1:, 1:5].all()
    assert not shards.masked(np.arange(len(ids)))[:, 0].any()  # BOS is special, and there is none to be masked
    assert lengths[-1] > 5  # the last one brings something new


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "opt", "bloom", "gemma2", "qwen3", "bert"])
def test_activations_of_a_padded_row_are_those_of_the_document_alone(tmp_path, kind) -> None:
    docs = documents(24)
    padded(docs, tmp_path, context_length=48)
    model, shards = tiny_model(kind), TokenShards(tmp_path)
    read = batch(shards, np.arange(24))
    together = capture(model, SITE, read.ids, read.attention)
    for row, ids, length in zip(together, read.ids, shards.lengths(range(24)), strict=True):
        alone = capture(model, SITE, ids[None, :length])[0]
        assert torch.allclose(row[:length], alone, atol=1e-4)


def test_a_training_sees_the_tokens_of_documents_alone_however_special_ones_are_taken(tmp_path) -> None:
    docs = documents(40)
    statistics = padded(docs, tmp_path, stride=4)
    model, shards = tiny_model("llama"), TokenShards(tmp_path)
    for skip_special in (True, False):
        stream = ActivationStream(model, SITE, shards, batch_tokens=64, buffer_tokens=256, skip_special=skip_special)
        own = statistics["document_tokens"] + (0 if skip_special else shards.n_sequences)
        assert stream.tokens_per_epoch == own
        seen = torch.cat([stream.batch(step)[SITE] for step in range(own // 64 + 1)])[:own]
        read = batch(shards, np.arange(shards.n_sequences), skip_special)
        wanted = capture(model, SITE, read.ids, read.attention)[~read.skipped]
        order = [x[torch.argsort(x[:, 0])] for x in (seen, wanted)]
        assert torch.allclose(*order, atol=1e-4)


def test_padding_fires_no_feature_and_is_in_no_example(tmp_path) -> None:
    padded(documents(60), tmp_path / "tokens", stride=4)
    shards = TokenShards(tmp_path / "tokens")
    counts = scan(tiny_model("llama"), random_sae(), SITE, shards, tmp_path / "scan", tokens=10**6, skip_special=False)
    assert counts["tokens"] == (~shards.masked(np.arange(shards.n_sequences))).sum()
    evidence, lengths = Evidence(tmp_path / "scan"), shards.lengths(range(shards.n_sequences))
    examples = [example for index in range(evidence.width) for example in evidence.examples(index, 5)]
    assert len(examples) > 10
    assert all(example.places.max() < lengths[example.sequence] for example in examples)


def test_sequences_of_like_lengths_are_read_together_and_each_token_is_known_by_its_place(tmp_path) -> None:
    padded(documents(60), tmp_path, context_length=64)
    shards, ids, special, lengths = every(tmp_path)
    read = list(alike(shards, 10, 50, 8))
    assert sorted(torch.cat([part.numbers for part in read]).tolist()) == [*range(10, 50)]
    assert [len(part.ids) for part in read] == [8] * 5 and sum(part.tokens for part in read) == lengths[10:50].sum()
    padding = sum(part.ids.numel() - part.tokens for part in read)
    assert padding < 0.3 * (40 * 64 - lengths[10:50].sum())
    positions = torch.cat([part.positions(64) for part in read])
    counted = torch.cat([part.counted(part.ids[..., None]) for part in read])[:, 0]
    assert torch.equal(counted, torch.from_numpy(ids).long().flatten()[positions])
    assert sorted(positions.tolist()) == [place for place in np.flatnonzero(~special) if 640 <= place < 3200]


def test_a_cache_and_a_scan_are_of_documents_alone_and_count_no_padding(tmp_path) -> None:
    padded(documents(60), tmp_path / "tokens", context_length=64)
    shards, ids, special, lengths = every(tmp_path / "tokens")
    model, said = tiny_model("llama"), []
    manifest, read, _ = write_cache(
        lambda: model, [SITE], shards, tmp_path / "cache", tokens=10**6, stored="float32",
        on_progress=lambda *progress: said.append(progress),
    )  # fmt: skip
    assert read == lengths.sum() == shards.n_tokens and said[-1] == (read, read)
    assert manifest["tokens"] == (~special).sum()
    stored = load_file(tmp_path / "cache" / site_file(0, SITE, 0))["activations"]
    positions = store.read_tensor(tmp_path / "cache" / shard_file(0), "positions")
    for n, length in enumerate(lengths):
        alone = capture(model, SITE, torch.from_numpy(ids[n, :length]).long()[None])[0]
        own = np.flatnonzero(positions // 64 == n)
        assert torch.allclose(stored[own], alone[positions[own].astype(int) % 64], atol=1e-4)
    scan(model, random_sae(), SITE, shards, tmp_path / "scan", tokens=10**6, on_progress=lambda *p: said.append(p))
    assert said[-1] == (read, read)
    offsets, places = (np.load(tmp_path / "scan" / f"{name}.npy") for name in ("offsets", "positions"))
    assert all((np.diff(places[a:b].astype(int)) > 0).all() for a, b in itertools.pairwise(offsets))


def test_losses_are_of_documents_alone(tmp_path) -> None:
    docs = documents(30)
    padded(docs, tmp_path)
    model, shards, sae = tiny_model("llama"), TokenShards(tmp_path), random_sae()
    measured = evaluate(model, sae, SITE, shards, tokens=10**6, ce_tokens=10**6)
    total, n = 0.0, 0
    for ids, length in zip(shards.rows(range(30))[0], shards.lengths(range(30)), strict=True):
        own = torch.from_numpy(ids[:length]).long()[None]
        log_p = model(input_ids=own).logits[0, 1:-1].log_softmax(-1)  # what BOS predicts is not counted
        total -= log_p.gather(1, own[0, 2:, None]).sum().item()
        n += length - 2
    assert measured["ce_tokens"] == n
    assert measured["ce_clean"] == pytest.approx(total / n, abs=1e-4)
    assert measured["tokens"] == shards.lengths(range(30)).sum() - 30


def test_as_many_rows_are_read_as_hold_the_tokens_that_were_asked_for(tmp_path) -> None:
    padded(documents(60), tmp_path, context_length=64)
    shards = TokenShards(tmp_path)
    rows = covering(shards, shards.n_tokens // 2)
    assert rows == 30  # not half of them, as if the padding were tokens
    assert covering(shards, 10**9) == 60


def test_an_encoder_closes_a_document_before_the_padding(tmp_path) -> None:
    tokenizer = byte_tokenizer(("[CLS]", "[SEP]", "[PAD]"), cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")
    padded(["cat", "the cat"], tmp_path, tokenizer)
    _, ids, _, lengths = every(tmp_path)
    assert [ids[n][lengths[n] - 1] for n in (0, 1)] == [1, 1]
    assert (ids[0][lengths[0] :] == 2).all()


def test_a_tokenizer_without_a_padding_token_pads_with_what_it_has(tmp_path) -> None:
    padded(["cat"], tmp_path / "eos", byte_tokenizer(("<s>", "</s>"), bos_token="<s>", eos_token="</s>"))
    padded(["cat"], tmp_path / "none", byte_tokenizer(()))
    for folder, filler in (("eos", 1), ("none", 0)):
        _, ids, special, lengths = every(tmp_path / folder)
        assert (ids[0][lengths[0] :] == filler).all() and special[0][lengths[0] :].all()


def in_windows(docs: list[str], folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.ml.pieces.BATCH", 2000)
        patch.setattr("jobs.ml.pieces.PIECE", 70)
        padded(docs, folder, stride=4, held_out=0.2, shard_tokens=4096)


def test_windows_killed_with_no_warning_end_with_the_same_bytes(tmp_path) -> None:
    docs = documents(300)
    in_windows(docs, tmp_path / "whole")
    assert killed_at(9, "write_array", in_windows, docs, tmp_path / "broken")
    assert store.read_json(tmp_path / "broken" / "state.json")["counted"]["documents"] > 0
    in_windows(docs, tmp_path / "broken")
    whole, broken = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if not path.name.endswith(".tmp")}
        for name in ("whole", "broken")
    )
    assert whole == broken


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"stride": 4, "layout": "packed"}, "stride"),
        ({"stride": 9}, "stride"),
        ({"layout": "loose"}, "layout"),
        ({"junk": "much"}, "junk"),
        ({"train_on": "user"}, "train_on"),
        ({"bos": "always", "tokenizer": byte_tokenizer(())}, "bos"),
        ({"separator": "eos", "tokenizer": byte_tokenizer(())}, "separator"),
        ({"separator": "bos", "tokenizer": byte_tokenizer(())}, "separator"),
        ({"embeddings": 299}, "language_model"),
    ],
)
def test_what_cannot_be_is_refused_with_the_field_to_change(tmp_path, options, field) -> None:
    with pytest.raises(Unusable) as refused:
        partial(padded, documents(10), tmp_path)(**options)
    assert refused.value.field == field and refused.value.hint


def test_a_vocabulary_beyond_the_embedding_is_refused_with_both_numbers(tmp_path) -> None:
    with pytest.raises(Unusable, match="up to 299, but the model has embeddings for 280"):
        padded(documents(10), tmp_path, embeddings=280)


def test_a_padding_token_alone_beyond_the_embedding_is_replaced(tmp_path) -> None:
    tokenizer = decoder_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<far>"})
    padded(["cat"], tmp_path, tokenizer, embeddings=300)
    assert every(tmp_path)[1].max() < 300


def test_an_added_token_beyond_the_embedding_is_refused_where_a_text_holds_it(tmp_path) -> None:
    tokenizer = decoder_tokenizer()
    tokenizer.add_tokens(["<far>"])
    padded(["cat"], tmp_path / "without", tokenizer, embeddings=300)
    with pytest.raises(Unusable, match="up to 300, but the model has embeddings for 300"):
        padded(["cat", "cat <far> cat"], tmp_path / "with", tokenizer, embeddings=300)


def test_bos_as_the_tokenizer_does_by_itself(tmp_path) -> None:
    padded(["the cat"], tmp_path, bos="tokenizer")  # this one adds nothing by itself
    assert BOS not in every(tmp_path)[1]


def test_nothing_may_stand_between_packed_documents(tmp_path) -> None:
    padded(documents(20), tmp_path / "none", layout="packed", separator="none")
    assert EOS not in every(tmp_path / "none")[1]
    padded(documents(20), tmp_path / "bos", layout="packed", separator="bos")
    assert EOS not in every(tmp_path / "bos")[1] and (every(tmp_path / "bos")[1][:, 1:] == BOS).any()


def test_tokens_of_before_there_were_masks_are_read_as_they_were(tmp_path) -> None:
    padded(documents(40), tmp_path, layout="packed")
    manifest = store.read_json(tmp_path / "manifest.json")
    del manifest["masks"]
    known = ("context_length", "seed", "held_out", "add_bos", "shard_tokens", "vocabulary")
    manifest["plan"] = {name: manifest["plan"][name] for name in known}
    for split in ("train", "held_out"):
        for new in ("masked_tokens", "padding_tokens"):
            del manifest["statistics"][split][new]
    store.write_json(tmp_path / "manifest.json", manifest)
    shards = TokenShards(tmp_path)
    read = shards.read(range(shards.n_sequences))
    assert read.attention is None and np.array_equal(read.skipped, shards.rows(range(shards.n_sequences))[1])
