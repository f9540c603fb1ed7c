"""Where an SAE stands in a model."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from jobs.ml.sae import Sae
from jobs.ml.sequences import Batch
from jobs.ml.sites import Site, UnknownSite, capture_all, capture_in_pass, resolve


class Place(NamedTuple):
    """Which tensors an SAE reads, and which it rebuilds: those of several sites stand side by side."""

    reads: tuple[Site, ...]
    writes: tuple[Site, ...]

    def inputs(self, model: PreTrainedModel, read: Batch) -> Tensor:
        """[B, T, D]"""
        found = capture_all(model, self.reads, read.ids, read.attention)
        return torch.cat([found[site.name] for site in self.reads], dim=-1)

    def capture(self, model: PreTrainedModel, read: Batch) -> tuple[Tensor, Tensor]:
        """Inputs [B, T, D] and targets [B, T, D_out]"""
        return self.sides(capture_all(model, [*self.reads, *self.writes], read.ids, read.attention))

    def capture_with_logits(self, model: PreTrainedModel, read: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The same, and the logits [B, T, V] of that pass."""
        found, output = capture_in_pass(model, [*self.reads, *self.writes], read.ids, read.attention)
        return *self.sides(found), output.logits

    def sides(self, found: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = (torch.cat([found[site.name] for site in side], dim=-1) for side in (self.reads, self.writes))
        return x, y

    def split(self, y: Tensor) -> Iterator[tuple[Site, Tensor]]:
        """Each rebuilt site's part of y [..., D_out]"""
        return zip(self.writes, y.split([site.width for site in self.writes], dim=-1), strict=True)


def find_place(model: PreTrainedModel, sae: Sae, reads: str | Sequence[str], writes: Sequence[str] = ()) -> Place:
    """writes: where they are not the sites that it reads. Raises UnknownSite."""
    names = (reads,) if isinstance(reads, str) else tuple(reads)
    inputs, outputs = (tuple(resolve(model, name) for name in side) for side in (names, tuple(writes) or names))
    for side, width in ((inputs, sae.d_in), (outputs, sae.d_out)):
        if (found := sum(site.width for site in side)) != width:
            has = " + ".join(site.name for site in side)
            raise UnknownSite(f"{has} has {found} dimensions, but the SAE has {width} there.")
    return Place(inputs, outputs)
