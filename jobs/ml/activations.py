"""Activations of some sites, shuffled, as an endless order of tokens that any step can be read from
directly.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from jobs.ml import store
from jobs.ml.errors import WithHint
from jobs.ml.language_model import precision_of
from jobs.ml.parallel import ALONE, Ranks
from jobs.ml.sequences import batch
from jobs.ml.sites import Site, capture_all, resolve
from jobs.ml.tokens import TokenShards


class NonFiniteActivations(WithHint):
    pass


class ActivationStream:
    """Batch `step` is the tokens [step * batch_tokens, (step + 1) * batch_tokens) of an order that has no
    end.

    The order: the sequences are permuted anew in every epoch, by (seed, epoch); a chunk of about
    `buffer_tokens` of them is run through the model, and its tokens are permuted by (seed, epoch, chunk).
    Nothing else is remembered from step to step, so to resume exactly is to ask for the next step; it costs
    one chunk, or two where the batch straddles them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: str | Sequence[str],
        shards: TokenShards,
        *,
        batch_tokens: int = 4096,
        buffer_tokens: int = 2**16,
        seed: int = 0,
        skip_special: bool = True,
        model_batch: int = 8,
        device: str = "cpu",
        ranks: Ranks = ALONE,
    ) -> None:
        """model_batch: sequences per forward pass; device: where the activations are kept; ranks: processes that share
        the forward passes, and all get all activations. Raises ValueError.
        """
        self.model, self.shards, self.ranks = model, shards, ranks
        self.sites: dict[str, Site] = {
            name: resolve(model, name) for name in ([sites] if isinstance(sites, str) else sites)
        }
        self.batch_tokens, self.seed, self.device = batch_tokens, seed, device
        self.skip_special, self.model_batch = skip_special, model_batch
        self.chunk_rows = max(1, buffer_tokens // shards.context_length)
        self.kept = shards.kept_per_sequence(skip_special)
        self.tokens_per_epoch = int(self.kept.sum())
        if self.tokens_per_epoch == 0:
            raise WithHint(f"there are no tokens to read in the {shards.split} split.")
        self._epoch: tuple[int, np.ndarray, np.ndarray] = (-1, self.kept, self.kept)
        self._chunk: tuple[int, int] | None = None  # the epoch and chunk that the buffer holds
        self._buffers: dict[str, Tensor] = {}  # [tokens of the chunk, width]
        self._order = torch.empty(0)
        self._step: int | None = None  # the step that self._batch belongs to
        self._batch: dict[str, Tensor] = {}

    @property
    def dtype(self) -> str:
        """The precision of the language model."""
        return precision_of(self.model)

    def identity(self) -> dict[str, Any]:
        """What decides which activations come in which order."""
        return {
            "model": [type(self.model).__name__, self.model.num_parameters(), precision_of(self.model)],
            "tokens": store.fingerprint(store.read_manifest(self.shards.folder)),
            "sites": list(self.sites),
            "seed": self.seed,
            "skip_special": self.skip_special,
            "chunk_rows": self.chunk_rows,
        }

    def batch(self, step: int) -> dict[str, Tensor]:
        """By site: activations [batch_tokens, width] of the same tokens, float32. Raises NonFiniteActivations."""
        for _ in self.prepare(step):
            pass
        return self._batch

    def prepare(self, step: int) -> Iterator[None]:
        """Computes what batch(step) needs, one forward pass at a time, so that the caller can listen in
        between.
        """
        if self._step == step:
            return
        parts: dict[str, list[Tensor]] = {name: [] for name in self.sites}
        for epoch, chunk, begin, end in self.spans(step):
            yield from self._load(epoch, chunk, step)
            order = self._order[begin:end]
            for name, buffer in self._buffers.items():
                parts[name].append(buffer[order])
        self._batch = {name: taken[0] if len(taken) == 1 else torch.cat(taken) for name, taken in parts.items()}
        self._step = step

    def sample(self) -> dict[str, Tensor]:
        """The whole chunk in the buffer, by site [tokens, width]: what scales are estimated on, without using it up."""
        return self._buffers

    def spans(self, step: int) -> Iterator[tuple[int, int, int, int]]:
        """(epoch, chunk, begin, end): which of each chunk's permuted tokens are in the batch."""
        start, end = step * self.batch_tokens, (step + 1) * self.batch_tokens
        while start < end:
            epoch, offset = divmod(start, self.tokens_per_epoch)
            ends = self._rows_and_ends(epoch)[1]
            chunk = int(np.searchsorted(ends, offset, side="right"))
            first = int(ends[chunk - 1]) if chunk else 0
            stop = min(offset + end - start, int(ends[chunk]))
            yield epoch, chunk, offset - first, stop - first
            start += stop - offset

    def _rows_and_ends(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order of sequences, and the tokens up to the end of each of its chunks."""
        if self._epoch[0] != epoch:
            rows = generator(self.seed, epoch).permutation(len(self.kept))
            ends = np.add.reduceat(self.kept[rows], np.arange(0, len(rows), self.chunk_rows)).cumsum()
            self._epoch = epoch, rows, ends
        return self._epoch[1:]

    def _load(self, epoch: int, chunk: int, step: int) -> Iterator[None]:
        """Fills the buffer with a chunk, unless it holds it already."""
        if self._chunk == (epoch, chunk):
            return
        self._chunk = None
        rows = self._rows_and_ends(epoch)[0][chunk * self.chunk_rows : (chunk + 1) * self.chunk_rows]
        rows = rows[np.argsort(-self.shards.lengths(rows), kind="stable")]  # those of like lengths together
        total = int(self.kept[rows].sum())
        for site in self.sites.values():
            if len(self._buffers.get(site.name, ())) != total:
                self._buffers[site.name] = torch.empty(total, site.width, device=self.device)
        ends = self.kept[rows].cumsum()
        if self.ranks.size > 1:
            for buffer in self._buffers.values():
                buffer.zero_()
        for turn in range(0, len(rows), self.model_batch * self.ranks.size):
            start = turn + self.model_batch * self.ranks.rank
            if start < len(rows):
                self._run(rows[start : start + self.model_batch], int(ends[start - 1]) if start else 0)
            yield
        for name, buffer in self._buffers.items():
            self.ranks.sum(buffer)  # what the others have run is zero here
            if not torch.isfinite(buffer).all():
                raise NonFiniteActivations(
                    f"{name} gave activations that are not finite numbers, met at step {step}.",
                    "In float16 large models overflow: use bfloat16 or float32.",
                )
        order = generator(self.seed, epoch, chunk).permutation(total)
        self._order = torch.from_numpy(order).to(self.device)
        self._chunk = epoch, chunk

    def _run(self, rows: np.ndarray, first: int) -> None:
        """The activations of the tokens of these sequences that count, into the buffers from the place `first` on."""
        longest = int(self.shards.lengths(rows[:1])[0])
        read = batch(self.shards, rows, self.skip_special).cut(longest).to(self.model.device)
        for name, tensor in capture_all(self.model, list(self.sites.values()), read.ids, read.attention).items():
            x = read.counted(tensor)
            self._buffers[name][first : first + len(x)] = x  # also to float32, and from the model's device to this one


def generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)
