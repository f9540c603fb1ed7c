from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from jobs.ml.vocabulary import byte_alphabet, vocabulary
from tests.ml.tiny import decoder_tokenizer


def test_byte_level_pieces_read_as_text_and_lone_bytes_as_escapes() -> None:
    tokenizer = decoder_tokenizer()
    words = vocabulary(tokenizer)
    assert len(words) == len(tokenizer)
    assert words[tokenizer.convert_tokens_to_ids("Ġcat")] == " cat"
    assert words[tokenizer.convert_tokens_to_ids("Ċ")] == "\n"
    assert words[tokenizer.convert_tokens_to_ids("ð")] == r"\xf0"
    assert words[0] == "<s>"


def test_the_pieces_of_a_text_are_the_text() -> None:
    tokenizer = decoder_tokenizer()
    words = vocabulary(tokenizer)
    text = "the cat, sat on a mat\n\tand saw"
    assert "".join(words[i] for i in tokenizer(text, add_special_tokens=False).input_ids) == text


def test_the_byte_alphabet_has_every_byte_once() -> None:
    assert sorted(byte_alphabet().values()) == list(range(256))


def test_sentencepiece_marks_become_spaces_and_byte_tokens_their_bytes() -> None:
    tokenizer = Tokenizer(models.BPE({"<unk>": 0, "▁the": 1, "<0x0A>": 2, "<0xF0>": 3, "cat": 4}, []))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    words = vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))
    assert words == ["<unk>", " the", "\n", r"\xf0", "cat"]


def test_wordpiece_continuations_stay_as_they_are() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "cat": 1, "##s": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    assert vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")) == ["[UNK]", "cat", "##s"]


def test_a_padded_vocabulary_is_filled_with_nothing() -> None:
    assert vocabulary(decoder_tokenizer(), size=310)[300:] == [""] * 10
