"""Feature absorption (Chanin et al. 2024): does a latent for a word keep silent the latent for its first letter?

Words of one token are read at the end of a few examples of spelling. A linear probe says for each letter in which
direction the activations hold it; k-sparse probing says which latents stand for it. Where these fall short of what the
probe sees, and latents that point the probe's way make up for it, the letter is absorbed. Definitions as in SAEBench.
"""

import random
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from jobs.ml.bootstrap import RESAMPLES, Formula, UnitSums, figure, ratio
from jobs.ml.framing import framing
from jobs.ml.language_model import is_causal
from jobs.ml.logistic import fit
from jobs.ml.place import Place
from jobs.ml.pooled import NUMBERS, difference
from jobs.ml.sae import Sae
from jobs.ml.sequences import Batch
from jobs.ml.vocabulary import vocabulary

EXAMPLES = ("tartan", "mirth", "window", "basket", "lemon")
LETTERS = 26
WORDS = 3000  # read at most
PER_LETTER = 20  # words: letters with fewer are left out
SPELLS = 0.6  # of the words not trained on, whose letter must be read off the activations
TRAIN = 0.8
MOST_LATENTS, JUMP = 10, 0.03  # of a letter; in F1, for one more
NEAR, ABSORBING, SHARE = 0.1, 3, 0.4  # cosine with the probe; latents; of the projection
FULL_NEAR = 0.025
FORMULAS = (
    Formula("absorption_fraction", 1, lambda s: ratio(s["fraction"], s["n"])),
    Formula("full_absorption", 1, lambda s: ratio(s["full"], s["n"])),
)


def words_of(tokenizer: Any, seed: int = 0) -> list[tuple[int, int]]:
    """(token, letter) of tokens that are a whole word of plain letters, with the space before it."""
    found = {}
    for index, text in enumerate(vocabulary(tokenizer)):
        if re.fullmatch(r" [A-Za-z]{3,}", text):
            found[index] = ord(text[1].lower()) - ord("a")
    words = list(found.items())
    random.Random(seed).shuffle(words)
    return words[:WORDS]


def prompt(tokenizer: Any, bos: str) -> list[int]:
    """What comes before each word."""
    said = "".join(f" {word} has the first letter: {word[0].upper()}\n" for word in EXAMPLES)
    return [*framing(tokenizer, bos).before, *tokenizer(said, add_special_tokens=False)["input_ids"]]


@torch.no_grad()
def read_words(
    model: PreTrainedModel,
    sae: Sae,
    place: Place,
    before: list[int],
    tokens: list[int],
    model_batch: int,
    on_progress: Callable[[int, int], None],
) -> tuple[Tensor, Tensor]:
    """y [N, D_out] and f [N, M] at each word."""
    y, f = torch.zeros(len(tokens), sae.d_out), torch.zeros(len(tokens), sae.width)
    for start in range(0, len(tokens), model_batch):
        part = tokens[start : start + model_batch]
        ids = torch.tensor([[*before, token] for token in part])
        read = Batch(torch.arange(start, start + len(part)), ids, torch.zeros_like(ids, dtype=torch.bool), None)
        inputs, targets = place.capture(model, read.to(model.device))
        y[start : start + len(part)] = targets[:, -1].float().cpu()
        codes = sae.encode(inputs[:, -1].to(sae.b_dec.device, torch.float32))
        f[start : start + len(part)] = codes.cpu()
        on_progress(start + len(part), len(tokens))
    return y, f


def absorption(
    model: PreTrainedModel,
    sae: Sae,
    place: Place,
    tokenizer: Any,
    *,
    bos: str = "present",
    model_batch: int = 8,
    resamples: int = RESAMPLES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Any], str]:
    """Figures, or why there are none."""
    if not is_causal(model.config):
        return {}, f"{type(model).__name__} does not predict the next token"
    words = words_of(tokenizer)[: max(1, NUMBERS // sae.width)]
    counts = torch.bincount(torch.tensor([letter for _, letter in words], dtype=torch.long), minlength=LETTERS)
    words = [(token, letter) for token, letter in words if counts[letter] >= PER_LETTER]
    if len({letter for _, letter in words}) < 2:
        return {}, f"the tokenizer has fewer than two letters with {PER_LETTER} words of one token each"
    before, tokens = prompt(tokenizer, bos), [token for token, _ in words]
    y, f = read_words(model, sae, place, before, tokens, model_batch, on_progress)
    return of_words(sae.W_dec.float().cpu(), y, f, torch.tensor([letter for _, letter in words]), resamples)


def of_words(
    W_dec: Tensor, y: Tensor, f: Tensor, letters: Tensor, resamples: int = RESAMPLES
) -> tuple[dict[str, Any], str]:
    """From the activations y [N, D_out] and codes f [N, M] at words with these first letters int64 [N]."""
    train = torch.rand(len(y), generator=torch.Generator().manual_seed(0)) < TRAIN
    probes = {int(letter): fit(y[train], letters[train] == letter) for letter in letters.unique()}
    scores = torch.stack([y.double() @ probe.weight + probe.bias for probe in probes.values()], dim=1)
    right = torch.tensor(list(probes))[scores.argmax(1)] == letters
    accuracy = float(right[~train].double().mean())
    if not accuracy >= SPELLS:
        said = f"the first letter of {int((~train).sum()):,} words can be read off the activations in"
        return {}, f"{said} {100 * accuracy:.0f} % of the cases, which is less than {100 * SPELLS:.0f} %"
    sums = UnitSums(["fraction", "full"], 0, "cpu")
    directions = W_dec.double()
    lengths = directions.norm(dim=1).clamp_min(1e-12)
    for letter, probe in probes.items():
        tested = (~train & right & (letters == letter)).nonzero().flatten()
        if not len(tested):
            continue
        towards = F.normalize(probe.weight.cpu(), dim=0)
        along = directions @ towards
        whole, main = y[tested].double() @ towards, standing_for(f, letters == letter, train)
        fractions, full = absorbed(whole, f[tested], along, along / lengths, main)
        sums.add(tested, {"fraction": fractions, "full": full})
    spelled = figure(accuracy, int((~train).sum()), "spelling_accuracy/1")
    return {**sums.figures(FORMULAS, resamples), "spelling_accuracy": spelled}, ""


def standing_for(f: Tensor, truth: Tensor, train: Tensor) -> Tensor:
    """The latents that tell a letter: one more as long as that helps."""
    order = difference(f, train & truth, train & ~truth).topk(min(MOST_LATENTS, f.shape[1])).indices
    kept, best = 1, f1_of(f, truth, train, order[:1])
    for k in range(2, len(order) + 1):
        found = f1_of(f, truth, train, order[:k])
        if found < best + JUMP:
            break
        kept, best = k, found
    return order[:kept]


def f1_of(f: Tensor, truth: Tensor, train: Tensor, latents: Tensor) -> float:
    seen = f[:, latents][train]
    said = fit(seen, truth[train]).says(seen)
    hits, missed = int((said & truth[train]).sum()), int((said != truth[train]).sum())
    return 2 * hits / max(1, 2 * hits + missed)


def absorbed(whole: Tensor, f: Tensor, along: Tensor, cosines: Tensor, main: Tensor) -> tuple[Tensor, Tensor]:
    """Of each word [N]: the share of the letter that other latents hold, and whether they hold all of it.

    whole float64 [N]: how far its activation goes the probe's way; along, cosines float64 [M]: how far each latent's
    direction does, and its cosine with it; main: the latents that stand for the letter."""
    projections = f.double() * along  # [N, M]
    held = projections[:, main].sum(1)
    others = projections.clone()
    others[:, main] = 0
    near = others * (cosines >= NEAR)
    taken = near.clamp_min(0).topk(min(ABSORBING, near.shape[1]), dim=1).values.sum(1)
    part = torch.minimum(taken, whole - held)
    fraction = torch.where(held <= 0, 1.0, part / (part + held).clamp_min(1e-30))
    there = (whole > 0) & (held < whole) & (taken >= SHARE * whole)
    strongest, which = others.max(1)
    silent = (f[:, main] <= 0).all(1)
    full = silent & (cosines[which] >= FULL_NEAR) & (strongest >= SHARE * whole) & (whole > 0)
    return torch.where(there, fraction, 0.0), full
