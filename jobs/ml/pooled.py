"""Labelled texts as a model and an SAE see them: means over the tokens of each text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from jobs.ml.framing import framing
from jobs.ml.labelled import Labelled
from jobs.ml.place import Place
from jobs.ml.sae import Sae
from jobs.ml.sequences import Batch

LENGTH = 128  # tokens that are read of a text, as in SAEBench
TEST_EVERY = 5  # texts of a label
NUMBERS = 2**28  # codes held at once


@dataclass
class Pooled:
    """N texts; whatever is fitted sees those to train on, whatever is told those to test on."""

    y: Tensor  # float32 [N, D_out], means of what the SAE rebuilds
    f: Tensor  # float32 [N, M], means of the codes
    labels: Tensor  # int64 [N]
    names: list[str]
    seconds: Tensor  # int64 [N]; all 0 without second labels
    train: Tensor  # bool [N]

    def balanced(self, truth: Tensor, train: bool) -> tuple[Tensor, Tensor]:
        """Rows [n] of the texts to train on, or to test on, as many of which it is true as not; and the truth there."""
        there = self.train == train
        yes, no = (rows.nonzero().flatten() for rows in (there & truth, there & ~truth))
        n = min(len(yes), len(no))
        rows = torch.cat([yes[:n], no[:n]])
        return rows, truth[rows]


def encode(tokenizer: Any, texts: Sequence[str], bos: str, length: int) -> list[list[int]]:
    """Ids of each text with what stands around a row, at most `length` in all."""
    frame = framing(tokenizer, bos)
    words = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    room = length - frame.overhead
    return [[*frame.before, *ids[:room], *frame.after] for ids in words]


def padded(rows: Sequence[Sequence[int]], numbers: Sequence[int], special: frozenset[int], padding: int) -> Batch:
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])
    attention = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    skipped = torch.isin(ids, torch.tensor(sorted(special), dtype=torch.long)) | (attention == 0)
    return Batch(torch.tensor(numbers), ids, skipped, None if bool(attention.all()) else attention)


@torch.no_grad()
def pool(
    model: PreTrainedModel,
    sae: Sae,
    place: Place,
    tokenizer: Any,
    texts: Sequence[Labelled],
    *,
    bos: str = "present",
    length: int = LENGTH,
    model_batch: int = 8,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pooled:
    """on_progress(texts, of) may raise to stop. Special tokens are in no mean."""
    frame, rows = framing(tokenizer, bos), encode(tokenizer, [text for text, _, _ in texts], bos, length)
    y, f = torch.zeros(len(rows), sae.d_out), torch.zeros(len(rows), sae.width)
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n]))
    for start in range(0, len(order), model_batch):
        numbers = order[start : start + model_batch]
        read = padded([rows[n] for n in numbers], numbers, frame.special, frame.padding).to(model.device)
        inputs, targets = place.capture(model, read)
        means = Means(read)
        y[numbers] = means.of(read.counted(targets).float()).cpu()
        codes = sae.active(read.counted(inputs).to(sae.b_dec.device, torch.float32))
        f[numbers] = means.of_codes(codes, sae.width).cpu()
        on_progress(start + len(numbers), len(order))
    labels, names = numbered([label for _, label, _ in texts])
    seconds, _ = numbered([second for _, _, second in texts])
    return Pooled(y, f, labels, names, seconds, split(labels, seconds))


def most_texts(width: int) -> int:
    """So many have room in memory with the codes of an SAE of this width."""
    return NUMBERS // width


def split(labels: Tensor, seconds: Tensor) -> Tensor:
    """bool [N]: those to train on. Every fifth text of each label is there to test, of each second label its share."""
    train = torch.ones(len(labels), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        train[rows[seconds[rows].argsort(stable=True)][TEST_EVERY - 1 :: TEST_EVERY]] = False
    return train


def difference(f: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """[M]: by how much the means of the codes f [N, M] over the one rows exceed those over the others."""
    return f[yes].mean(0) - f[no].mean(0)


class Means:
    """Over the tokens that count of each text of a batch."""

    def __init__(self, read: Batch) -> None:
        self.texts = read.places // read.ids.shape[1]  # int64 [n], of each token
        self.n = torch.bincount(self.texts, minlength=len(read.ids)).clamp_min(1)

    def of(self, x: Tensor) -> Tensor:
        """[B, D] of x [n, D]"""
        sums = x.new_zeros(len(self.n), x.shape[1]).index_add_(0, self.texts.to(x.device), x)
        return sums / self.n.to(x.device)[:, None]

    def of_codes(self, codes: Any, width: int) -> Tensor:
        """[B, M]"""
        device = codes.values.device
        places = (self.texts.to(device)[codes.rows], codes.latents)
        sums = codes.values.new_zeros(len(self.n), width).index_put_(places, codes.values, accumulate=True)
        return sums / self.n.to(device)[:, None]


def numbered(labels: Sequence[str]) -> tuple[Tensor, list[str]]:
    names = sorted(set(labels))
    places = {name: n for n, name in enumerate(names)}
    return torch.tensor([places[label] for label in labels]), names
