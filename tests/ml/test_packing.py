import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from jobs.ml import pieces as pieces_module
from jobs.ml import store
from jobs.ml.encode import encode
from jobs.ml.errors import Unusable
from jobs.ml.framing import framing
from jobs.ml.packing import ContextTooLong, NoTokens, is_held_out, pack
from jobs.ml.pieces import pieces
from jobs.ml.prepare import Document
from jobs.ml.tokens import TokenShards
from tests.files import contents
from tests.ml.tiny import byte_tokenizer, decoder_tokenizer, documents, killed_at

BOS, EOS = 0, 1


def all_rows(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    shards = TokenShards(folder, split)
    return shards.rows(range(shards.n_sequences))


def quickly(docs, folder, tokenizer=None, **options):
    options = {"context_length": 16, "seed": 0, "held_out": 0.0, "shard_tokens": 2048} | options
    docs = list(docs)
    return pack(lambda start: docs[start:], tokenizer or decoder_tokenizer(), folder, **options)


def test_every_token_is_there_once_in_order_with_bos_before_each_sequence_and_eos_between_documents(tmp_path) -> None:
    docs, tokenizer = documents(100), decoder_tokenizer()
    statistics = quickly(docs, tmp_path)
    ids, _ = all_rows(tmp_path, "train")
    assert (ids[:, 0] == BOS).all()
    wanted = list(itertools.chain.from_iterable([*tokenizer(d, add_special_tokens=False).input_ids, EOS] for d in docs))
    packed = ids[:, 1:].reshape(-1).tolist()
    assert packed == wanted[: len(packed)]
    assert len(wanted) - len(packed) == statistics["dropped_tokens"] < 15


def test_the_special_bits_mark_bos_and_eos_and_nothing_else(tmp_path) -> None:
    statistics = quickly(documents(100), tmp_path)
    ids, special = all_rows(tmp_path, "train")
    assert np.array_equal(special, (ids == BOS) | (ids == EOS))
    assert statistics["special_tokens"] == special.sum()
    assert np.array_equal(TokenShards(tmp_path).kept_per_sequence(), (~special).sum(1))


def test_statistics_add_up(tmp_path) -> None:
    docs = [*documents(80), "", ""]
    s = quickly(docs, tmp_path, held_out=0.4)
    assert s["documents"] == 82
    assert s["empty_documents"] == 2
    assert s["sequences"] == s["train"]["sequences"] + s["held_out"]["sequences"]
    assert s["tokens"] == 16 * s["sequences"]
    tokenizer = decoder_tokenizer()
    n = sum(len(tokenizer(d, add_special_tokens=False).input_ids) for d in docs)
    assert s["document_tokens"] == n
    assert s["mean_tokens_per_document"] == pytest.approx(n / 80)
    assert n + 80 == s["tokens"] - s["sequences"] + s["dropped_tokens"]  # contents and separators


def test_a_document_is_held_out_by_its_number_and_the_seed(tmp_path) -> None:
    docs = [f"d{i} " * 16 for i in range(40)]
    quickly(docs, tmp_path, held_out=0.3, seed=5)
    tokenizer = decoder_tokenizer()
    text = {s: tokenizer.decode(all_rows(tmp_path, s)[0].reshape(-1).tolist()) for s in ("train", "held_out")}
    held = [i for i in range(38) if is_held_out(5, i, 0.3)]
    assert 5 < len(held) < 20
    for i in range(38):
        assert (f"d{i} " in text["held_out"]) == (i in held)
        assert (f"d{i} " in text["train"]) == (i not in held)
    assert [i for i in range(38) if is_held_out(6, i, 0.3)] != held


def test_about_the_wanted_share_is_held_out() -> None:
    share = np.mean([is_held_out(0, i, 0.1) for i in range(20_000)])
    assert share == pytest.approx(0.1, abs=0.01)


class Stop(Exception):
    pass


@pytest.mark.parametrize("batches", [5, 7, 11])
def test_packing_interrupted_anywhere_ends_with_the_same_bytes(tmp_path, monkeypatch, batches) -> None:
    monkeypatch.setattr("jobs.ml.pieces.BATCH", 3000)
    monkeypatch.setattr("jobs.ml.pieces.PIECE", 70)  # most documents are cut
    docs = documents(250)
    quickly(docs, tmp_path / "whole", held_out=0.2)

    def interrupt_after(n: int):
        calls = itertools.count(1)

        def on_progress(done: int, tokens: int) -> None:
            if next(calls) == n:
                raise Stop

        return on_progress

    finished = False
    for _ in range(200):
        try:
            quickly(docs, tmp_path / "broken", held_out=0.2, on_progress=interrupt_after(batches + 1))
            finished = True
            break
        except Stop:
            continue
    assert finished
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def in_small_batches(docs: list[str], folder: Path, **options) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.ml.pieces.BATCH", 2000)
        quickly(docs, folder, held_out=0.2, **options)


def test_packing_killed_with_no_warning_ends_with_the_same_bytes(tmp_path) -> None:
    docs = documents(400)
    in_small_batches(docs, tmp_path / "whole")
    broken = tmp_path / "broken"
    assert killed_at(7, "write_array", in_small_batches, docs, broken)
    state = store.read_json(broken / "state.json")["counted"]
    assert 0 < state["documents"] < 400
    seen = []
    in_small_batches(docs, broken, on_progress=lambda done, tokens: seen.append(done))
    assert seen[0] > state["documents"]  # it went on from there
    assert {name: data for name, data in contents(broken).items() if not name.endswith(".tmp")} == contents(
        tmp_path / "whole"
    )


def test_a_finished_folder_is_left_as_it_is(tmp_path) -> None:
    first = quickly(documents(100), tmp_path)
    stamp = (tmp_path / "manifest.json").stat().st_mtime_ns
    assert quickly(iter(()), tmp_path) == first
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == stamp


def test_other_parameters_start_clean(tmp_path) -> None:
    quickly(documents(100), tmp_path / "one")
    quickly(documents(100), tmp_path / "one", context_length=8)
    quickly(documents(100), tmp_path / "fresh", context_length=8)
    assert contents(tmp_path / "one") == contents(tmp_path / "fresh")


def test_a_long_document_is_tokenized_in_pieces_that_lose_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("jobs.ml.pieces.PIECE", 100)
    text = " ".join(documents(40))
    cut = list(pieces([Document(text)], 0, 0))
    assert "".join(piece.text for piece in cut) == text
    assert max(len(piece.text) for piece in cut) <= 100
    assert all(piece.text.startswith(" ") for piece in cut[1:])  # never within a word
    assert [piece.last for piece in cut] == [False] * (len(cut) - 1) + [True]
    quickly([text], tmp_path)
    whole = decoder_tokenizer()(text, add_special_tokens=False).input_ids
    packed = all_rows(tmp_path, "train")[0][:, 1:].reshape(-1).tolist()
    assert packed == whole[: len(packed)]


def test_a_very_long_line_is_never_handed_over_in_one_go(tmp_path, monkeypatch) -> None:
    sizes = []

    def watched(tokenizer, batch):
        sizes.append(sum(len(piece.text) for piece in batch))
        return encode(tokenizer, batch)

    monkeypatch.setattr("jobs.ml.packing.encode", watched)
    quickly(["x" * 2_000_000], tmp_path, shard_tokens=2**20)
    assert max(sizes) <= pieces_module.BATCH + pieces_module.PIECE


def test_a_tokenizer_in_python_gives_ids_but_cannot_tell_where_in_the_text_they_are() -> None:
    tokenizer = ByT5Tokenizer()  # UTF-8 bytes after three special ids: it needs no files
    batch = list(pieces([Document("a cat"), Document("é")], 0, 0))
    assert [ids.tolist() for ids in encode(tokenizer, batch)] == [[b + 3 for b in s.encode()] for s in ("a cat", "é")]
    with pytest.raises(Unusable, match="does not tell where its tokens are") as refused:
        encode(tokenizer, list(pieces([Document("a cat", [(0, 1)])], 0, 0)))
    assert refused.value.field == "train_on"


def test_documents_of_which_all_or_a_part_is_counted_go_together() -> None:
    batch = list(pieces([Document("the cat"), Document("the cat", [(4, 7)])], 0, 0))
    whole, part = encode(decoder_tokenizer(), batch)
    assert len(whole) == len(part) and not np.array_equal(whole, part)
    assert np.array_equal(encode(decoder_tokenizer(), batch[:1])[0], whole)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(st.characters(), max_size=200), min_size=1, max_size=5))
def test_any_text_is_packed_whatever_its_characters(tmp_path_factory, texts) -> None:
    folder = tmp_path_factory.mktemp("any")
    statistics = quickly([*texts, "the cat sat on the mat " * 10, "\ud800\udfff lone \x00\x07"], folder)
    assert statistics["documents"] == len(texts) + 2


def test_a_lone_surrogate_becomes_the_replacement_character(tmp_path) -> None:
    quickly(["a\ud83dz" + " cat" * 40], tmp_path)
    assert "a\ufffdz" in decoder_tokenizer().decode(all_rows(tmp_path, "train")[0][0].tolist())


def test_a_tokenizer_without_special_tokens_packs_bare_text(tmp_path) -> None:
    statistics = quickly(documents(50), tmp_path, byte_tokenizer(special=()))
    assert statistics["special_tokens"] == 0
    assert not all_rows(tmp_path, "train")[1].any()


def test_bos_can_be_left_out(tmp_path) -> None:
    quickly(documents(50), tmp_path, bos="never")
    assert BOS not in all_rows(tmp_path, "train")[0]
    assert EOS in all_rows(tmp_path, "train")[0]
    assert TokenShards(tmp_path).bos == "never"


def test_an_encoder_gets_its_cls_and_sep_around_every_sequence(tmp_path) -> None:
    tokenizer = byte_tokenizer(("[CLS]", "[SEP]", "[PAD]"), cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")
    quickly(documents(50), tmp_path, tokenizer)
    ids, special = all_rows(tmp_path, "train")
    assert (ids[:, 0] == 0).all()
    assert (ids[:, -1] == 1).all()
    assert special[:, [0, -1]].all()


def test_unknown_words_of_an_encoder_are_content() -> None:
    tokenizer = byte_tokenizer(("[CLS]", "[SEP]", "[UNK]"), cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    assert framing(tokenizer).special == {0, 1}


def test_the_one_special_token_of_gpt2_is_special_though_it_is_its_unknown_token_as_well() -> None:
    end = "<|endoftext|>"
    frame = framing(byte_tokenizer((end,), bos_token=end, eos_token=end, unk_token=end))
    assert (frame.before, frame.between, frame.special) == ((0,), (0,), {0})


def test_large_vocabularies_take_four_bytes_a_token(tmp_path) -> None:
    tokenizer = decoder_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(66_000)])
    quickly(["word65990 " * 40], tmp_path, tokenizer)
    assert np.load(tmp_path / "train-00000.ids.npy").dtype == np.uint32
    assert 300 + 65_990 in all_rows(tmp_path, "train")[0]


def test_memory_does_not_grow_with_the_documents(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("jobs.ml.pieces.BATCH", 50_000)  # some 200 of them
    texts = documents(200)

    def peak(n: int) -> int:
        tracemalloc.start()
        stream = (texts[i % 200] for i in range(n))
        pack(lambda start: stream, decoder_tokenizer(), tmp_path / str(n), context_length=64, shard_tokens=2**14)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)  # what is loaded at the first time
    short, long = peak(1_000), peak(4_000)
    assert long < 1.5 * short < 2**24  # of four times as many


def test_rows_come_in_the_order_asked_for_across_shards(tmp_path) -> None:
    quickly(documents(200), tmp_path)
    shards = TokenShards(tmp_path)
    assert shards.n_sequences > 2 * shards.shard_rows
    every, special = all_rows(tmp_path, "train")
    wanted = np.random.default_rng(0).permutation(shards.n_sequences)
    ids, bits = shards.rows(wanted)
    assert np.array_equal(ids, every[wanted])
    assert np.array_equal(bits, special[wanted])


def test_a_context_beyond_the_models_is_refused(tmp_path) -> None:
    with pytest.raises(ContextTooLong, match="2048 tokens is more than the model's 1024"):
        quickly([], tmp_path, context_length=2048, model_context=1024)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"context_length": 2}, "context_length"),
        ({"layout": "padded", "context_length": 4, "stride": 2}, "stride"),
        ({"context_length": 128, "model_context": 64}, "context_length"),
    ],
)
def test_a_context_without_room_is_refused_at_the_field_to_change(tmp_path, options, field) -> None:
    known = {"tokenizer": byte_tokenizer(cls_token="<s>", sep_token="</s>")}
    with pytest.raises(Unusable) as error:
        quickly([], tmp_path, **known, **options)
    assert error.value.field == field and error.value.hint.startswith("Give ")


def test_too_little_text_is_refused_with_what_there_was(tmp_path) -> None:
    with pytest.raises(NoTokens, match=r"2 documents with \d+ tokens fill no sequence of 16"):
        quickly(["a", "b"], tmp_path)


@pytest.mark.parametrize("options", [{"held_out": 1.0}, {"held_out": -0.1}, {"context_length": 1}])
def test_impossible_parameters_are_refused(tmp_path, options) -> None:
    with pytest.raises(ValueError, match="held-out|context"):
        quickly(documents(10), tmp_path, **options)


def test_reading_an_unfinished_folder_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="not finished"):
        TokenShards(tmp_path)
