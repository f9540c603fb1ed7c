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

Key = tuple[int, int]  # of a chunk: its epoch, and which of that epoch


class NonFiniteActivations(WithHint):
    pass


class Chunk:
    """Some sequences, and the activations of those that were run through the model so far."""

    def __init__(self, rows: np.ndarray, kept: np.ndarray, order: Tensor) -> None:
        """rows: the numbers of the sequences; kept: how many tokens of each count; order: in which all of them come."""
        self.rows, self.order = rows, order
        self.ends = kept.cumsum()
        self.done = 0  # sequences
        self.x: dict[str, Tensor] = {}  # by site [tokens, width], as precise as the model gave them
        self.bad = torch.zeros((), device=order.device)  # passes in which something was not finite, or very large
        self.sound = False  # looked at, and nothing was

    def put(self, name: str, first: int, x: Tensor) -> None:
        """x [n, width]: of the tokens of the sequences from `first` on."""
        start = int(self.ends[first - 1]) if first else 0
        self.x[name][start : start + len(x)] = x  # from the model's device to this one


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
        self._chunks: dict[Key, Chunk] = {}  # the one that is read, and the next as far as it was read ahead
        self._reading: Key = (0, 0)
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
        between; what was begun is gone on with.
        """
        if self._step == step:
            return
        parts: dict[str, list[Tensor]] = {name: [] for name in self.sites}
        for epoch, number, begin, end in self.spans(step):
            yield from self._open((epoch, number), step)
            for name, x in self._taken(begin, end).items():
                parts[name].append(x)
        self._batch = {name: taken[0] if len(taken) == 1 else torch.cat(taken) for name, taken in parts.items()}
        self._step = step

    def _taken(self, begin: int, end: int) -> dict[str, Tensor]:
        """Copies, by site: nothing holds the chunk itself while the next one is filled."""
        chunk = self._chunks[self._reading]
        return {name: x[chunk.order[begin:end]].float() for name, x in chunk.x.items()}

    def at_hand(self, step: int) -> bool:
        """Whether batch(step) runs nothing through the model. It can be had then while another thread is in ahead()."""
        return all(self._is_done((epoch, number)) for epoch, number, *_ in self.spans(step))

    def _is_done(self, key: Key) -> bool:
        chunk = self._chunks.get(key)
        return chunk is not None and chunk.done >= len(chunk.rows)

    def ahead(self, steps: int) -> Iterator[None]:
        """Computes, in the same way, the chunk after the one that is read, if one of the first `steps` needs it. Not on
        a GPU, which does one thing after the other: it would only hold more. Nor where processes must speak in one
        order."""
        epoch, number = following = self._following(self._reading)
        first = epoch * self.tokens_per_epoch + (int(self._rows_and_ends(epoch)[1][number - 1]) if number else 0)
        if self.device == "cpu" and self.ranks.size == 1 and first < steps * self.batch_tokens:
            yield from self._fill(following)

    def sample(self) -> dict[str, Tensor]:
        """The whole chunk that is read, by site float32 [tokens, width]: what scales are estimated on, without using it
        up."""
        return {name: x.float() for name, x in self._chunks[self._reading].x.items()}

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
        known = self._epoch
        if known[0] != epoch:
            rows = generator(self.seed, epoch).permutation(len(self.kept))
            ends = np.add.reduceat(self.kept[rows], np.arange(0, len(rows), self.chunk_rows)).cumsum()
            known = self._epoch = epoch, rows, ends
        return known[1:]

    def _following(self, key: Key) -> Key:
        epoch, number = key
        return (epoch, number + 1) if number + 1 < len(self._rows_and_ends(epoch)[1]) else (epoch + 1, 0)

    def _open(self, key: Key, step: int) -> Iterator[None]:
        """That chunk is read from now on; of the others only the one after it is kept. Raises NonFiniteActivations."""
        self._reading, kept = key, (key, self._following(key))
        for known in set(self._chunks).difference(kept):
            del self._chunks[known]
        yield from self._fill(key)
        chunk = self._chunks[key]
        chunk.sound = chunk.sound or not chunk.bad
        for name, x in chunk.x.items():
            if not chunk.sound and not torch.isfinite(x).all():
                raise NonFiniteActivations(
                    f"{name} gave activations that are not finite numbers, met at step {step}.",
                    "In float16 large models overflow: use bfloat16 or float32.",
                )

    def _fill(self, key: Key) -> Iterator[None]:
        """Runs what is missing of a chunk through the model."""
        chunk = self._chunks[key] = self._chunks.get(key) or self._begun(*key)
        while chunk.done < len(chunk.rows):
            start = chunk.done + self.model_batch * self.ranks.rank
            if start < len(chunk.rows):
                self._run(chunk, start)
            chunk.done += self.model_batch * self.ranks.size
            if chunk.done >= len(chunk.rows):
                self.ranks.sum(chunk.bad)
                for x in chunk.x.values():
                    self.ranks.sum(x)  # what the others have run is zero here
            yield

    def _begun(self, epoch: int, number: int) -> Chunk:
        rows = self._rows_and_ends(epoch)[0][number * self.chunk_rows : (number + 1) * self.chunk_rows]
        rows = rows[np.argsort(-self.shards.lengths(rows), kind="stable")]  # those of like lengths together
        total = int(self.kept[rows].sum())
        order = torch.from_numpy(generator(self.seed, epoch, number).permutation(total)).to(self.device)
        chunk = Chunk(rows, self.kept[rows], order)
        if self.ranks.size > 1:  # each must have all of them, also of what it runs nothing of
            chunk.x = {site.name: torch.zeros(total, site.width, device=self.device) for site in self.sites.values()}
        return chunk

    def _run(self, chunk: Chunk, first: int) -> None:
        """One forward pass: the sequences from `first` on, as many as one takes."""
        rows = chunk.rows[first : first + self.model_batch]
        longest = int(self.shards.lengths(rows[:1])[0])
        read = batch(self.shards, rows, self.skip_special).cut(longest).to(self.model.device)
        for name, tensor in capture_all(self.model, list(self.sites.values()), read.ids, read.attention).items():
            x = read.counted(tensor)
            if name not in chunk.x:
                chunk.x[name] = torch.empty(len(chunk.order), x.shape[1], dtype=x.dtype, device=self.device)
            chunk.put(name, first, x)
            chunk.bad += (~x.sum(dtype=torch.float32).isfinite()).to(chunk.bad)


def generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)
