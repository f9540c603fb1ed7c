"""Weights and facts → an SAE as ours are: folded, with the same outputs."""

from dataclasses import replace

import torch
from torch import Tensor

from jobs.ml.architectures import class_of
from jobs.ml.errors import Unusable
from jobs.ml.formats.facts import AGAIN, Facts
from jobs.ml.sae import TINY, Sae

EQUAL = 1e-6  # decoder norms, relative to their mean
KEPT = (
    "Its decoder rows have different norms, by which its k latents are not weighed when they are chosen: the rows stay "
    "as they are, for with unit rows others would be chosen."
)


@torch.no_grad()
def assemble(facts: Facts, weights: dict[str, Tensor]) -> tuple[Sae, Facts]:
    """Raises Unusable."""
    for name, shape in facts.shapes.items():
        if tuple(weights[name].shape) != shape:
            raise Unusable(f"{name} has the shape {list(weights[name].shape)}, not {list(shape)}.", AGAIN)
    chosen_by_rank = facts.k is not None and not facts.weighted
    kept = chosen_by_rank and not alike(weights["W_dec"])
    sae = class_of(facts.architecture)(
        facts.d_in,
        facts.width,
        d_out=facts.d_out or None,
        centred=facts.centred,
        skip=facts.skip,
        folded=kept,
        **facts.options,
    )
    sae.load_state_dict({name: weights[name] for name in facts.shapes})
    folded = (sae if kept else sae.folded()).eval().requires_grad_(False)
    if wrong := [name for name, value in folded.state_dict().items() if not value.isfinite().all()]:
        raise Unusable(f"With its scales taken in, {', '.join(wrong)} holds values that are not finite numbers.", AGAIN)
    return folded, replace(facts, notes=(*facts.notes, KEPT)) if kept else facts


@torch.no_grad()
def plain_bias(sae: Sae) -> Tensor:
    """[M]: b_enc for a reader that does not take b_dec off the input."""
    return sae.b_enc - sae.W_enc @ sae.b_dec if sae.centred else sae.b_enc


def unweighed(threshold: Tensor, rows: Tensor) -> Tensor:
    """[M]: thresholds of a_i, from those of a_i ||W_dec_i||; of a row that is zero, one that nothing reaches."""
    return threshold / rows.norm(dim=1).clamp_min(TINY)


def alike(rows: Tensor) -> bool:
    """Have they all the same norm?"""
    norms = rows.norm(dim=1)
    return bool(norms.max() - norms.min() <= EQUAL * norms.mean())
