import pytest
import torch

from jobs.ml.absorption import absorption, of_words, prompt, words_of
from jobs.ml.place import find_place
from tests.ml.test_evaluate import SITE, random_sae
from tests.ml.tiny import decoder_tokenizer, tiny_model

D, M, N = 40, 60, 2000


def words(absorbing: float = 0.0) -> tuple:
    """Activations that hold one of four letters in a direction each. Latents 0 to 3 stand for the letters; in that
    share of the words of the first letter one of 10 to 14 fires in the place of 0, and writes the same."""
    random = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.pad(torch.eye(D), (0, 0, 0, M - D))
    W_dec[10:15] = torch.nn.functional.normalize(W_dec[0] + 0.2 * W_dec[10:15], dim=1)
    letters = torch.randint(4, (N,), generator=random)
    f = torch.zeros(N, M)
    f[torch.arange(N), letters] = 2 + torch.rand(N, generator=random)
    taken = (letters == 0) & (torch.rand(N, generator=random) < absorbing)
    own = 10 + torch.arange(N)[taken] % 5
    f[taken.nonzero().flatten(), own], f[taken, 0] = f[taken, 0], 0.0
    y = f @ W_dec + 0.05 * torch.randn(N, D, generator=random)
    return W_dec, y, f, letters


def test_letters_with_latents_of_their_own_are_not_absorbed() -> None:
    figures, why = of_words(*words())
    assert not why
    assert figures["absorption_fraction"]["value"] == pytest.approx(0, abs=0.01)
    assert figures["full_absorption"]["value"] == 0
    assert figures["spelling_accuracy"]["value"] == 1


def test_words_whose_own_latent_speaks_in_place_of_the_letters_are_absorbed() -> None:
    figures, _ = of_words(*words(absorbing=0.1))
    share = figures["full_absorption"]
    assert share["value"] == pytest.approx(0.1 / 4, abs=0.015)
    assert share["low"] <= share["value"] <= share["high"]
    assert figures["absorption_fraction"]["value"] == pytest.approx(share["value"], abs=0.01)


def test_of_a_model_that_cannot_spell_nothing_is_measured_and_the_reason_is_a_number() -> None:
    W_dec, y, f, letters = words()
    figures, why = of_words(W_dec, torch.randn(y.shape, generator=torch.Generator().manual_seed(1)), f, letters)
    assert figures == {}
    assert "words can be read off the activations in 2" in why and "less than 60 %" in why


def test_words_are_whole_tokens_with_a_space_before_them() -> None:
    tokenizer = decoder_tokenizer()
    for token, letter in words_of(tokenizer):
        text = tokenizer.decode([token])
        assert text.startswith(" ") and ord(text[1].lower()) - ord("a") == letter
    with_bos, without = prompt(tokenizer, "present"), prompt(tokenizer, "never")
    assert with_bos == [0, *without] and without[0] != 0


def test_a_tokenizer_without_words_and_an_encoder_say_why() -> None:
    model, sae = tiny_model("gpt2"), random_sae()
    figures, why = absorption(model, sae, find_place(model, sae, SITE), decoder_tokenizer())
    assert (figures, why) == ({}, "the tokenizer has fewer than two letters with 20 words of one token each")
    model = tiny_model("bert")
    assert absorption(model, sae, find_place(model, sae, SITE), decoder_tokenizer())[1] == (
        "BertModel does not predict the next token"
    )
