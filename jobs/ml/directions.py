"""What the decoder rows of an SAE point at: tokens, and each other."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from jobs.ml.blocks import UnsupportedModel, find_blocks
from jobs.ml.bootstrap import figure, number
from jobs.ml.language_model import is_causal
from jobs.ml.sae import Sae
from jobs.ml.sites import Site

CHUNK = 2**25  # numbers held at once
SIMILAR = "decoder_similarity/1"  # weights alone: not a figure of tokens
ALIKE = 0.9  # a cosine from which two decoder rows are taken for one direction


@torch.no_grad()
def neighbours(sae: Sae, n: int = 10) -> tuple[Tensor, Tensor]:
    """The n other latents with the most similar decoder rows: ids [M, n] and cosines [M, n]; fewer where M is
    small.
    """
    rows = F.normalize(sae.W_dec.float(), dim=1)
    n = min(n, sae.width - 1)
    found = []
    for start, part in parts(rows, sae.width):
        cosines = part @ rows.T
        cosines[torch.arange(len(part)), torch.arange(start, start + len(part))] = -torch.inf
        found.append(cosines.topk(n, dim=1))
    return torch.cat([top.indices for top in found]), torch.cat([top.values for top in found])


def similarity(sae: Sae) -> dict[str, Any]:
    """How near each latent's decoder row is to the nearest other one, as figures: the mean of the cosines, and the
    share above ALIKE. Exact, so without an interval; n counts latents."""
    nearest = neighbours(sae, 1)[1].flatten()
    found = nearest.double()
    values = {"nearest_decoder_cosine": found.mean(), "share_of_near_duplicates": (found > ALIKE).double().mean()}
    return {name: figure(number(float(value)), len(nearest), SIMILAR) for name, value in values.items()}


@torch.no_grad()
def logits(
    model: PreTrainedModel, sae: Sae, writes: Sequence[Site], n: int = 10
) -> dict[str, tuple[Tensor, Tensor]] | None:
    """The tokens each latent speaks for most and against most: {"top": (ids [M, n], values [M, n]), "bottom":
    ...}.

    A decoder row is taken as a small step in the residual stream just before the final norm, whose scale
    (and, for a LayerNorm, centring) it goes through; dividing by the length of the stream is left out. Values
    are relative to the mean over the vocabulary, which a softmax ignores. None where the site is not in the
    residual stream's basis, or the model predicts no tokens or has something else than one norm before its
    unembedding.
    """
    unembedding = model.get_output_embeddings() if is_causal(model.config) else None
    norm = final_norm(model)
    if unembedding is None or norm is None or len(writes) > 1 or not writes[0].residual:
        return None
    W = unembedding.weight.float()  # [V, D]
    if W.shape[1] != sae.d_out:
        return None
    rows = through_norm(norm, sae.W_dec.float().to(W.device))
    n = min(n, len(W))
    found: dict[str, list[tuple[Tensor, Tensor]]] = {"top": [], "bottom": []}
    for _, part in parts(rows, len(W)):
        values = part @ W.T
        values -= values.mean(dim=1, keepdim=True)
        for end, ends in found.items():
            best = values.topk(n, dim=1, largest=end == "top")
            ends.append((best.indices, best.values))
    return {end: (torch.cat([i for i, _ in ends]), torch.cat([v for _, v in ends])) for end, ends in found.items()}


def parts(rows: Tensor, columns: int) -> list[tuple[int, Tensor]]:
    """Rows in pieces whose product with `columns` columns is not too large, each with the number of its first
    row.
    """
    size = max(1, CHUNK // columns)
    return [(start, rows[start : start + size]) for start in range(0, len(rows), size)]


def final_norm(model: PreTrainedModel) -> nn.Module | None:
    """The one norm beside the list of blocks (Bloom has another one there, after its embeddings)."""
    try:
        path, _ = find_blocks(model)
    except UnsupportedModel:
        return None
    parent = model.get_submodule(path.rpartition(".")[0])
    found = [
        child
        for name, child in parent.named_children()
        if ("norm" in name.lower() or name == "ln_f") and "embed" not in name
    ]
    return found[0] if len(found) == 1 else None


def through_norm(norm: nn.Module, rows: Tensor) -> Tensor:
    """The rows [M, D] times the norm's gain, centred if it centres.

    The norm is asked instead of read: Gemma stores its gain less one, others store it under other names. A
    vector of mean 0 and mean square 1 comes out as itself times the gain, plus the bias; its negative shows
    what is bias.
    """
    D = rows.shape[1]
    probe = torch.linspace(1, 2, D, device=rows.device) * (-1) ** torch.arange(D, device=rows.device)
    probe = probe - probe.mean()
    probe = 100 * probe / probe.square().mean().sqrt()  # large, so that the epsilon of the norm is nothing
    out, opposite, shifted = norm(torch.stack([probe, -probe, probe + 50]).to(model_dtype(norm))).float()
    gain = (out - opposite) / (2 * probe / 100)
    centres = (shifted - out).abs().max() < 0.01 * (out - opposite).abs().max()
    return (rows - rows.mean(dim=1, keepdim=True) if centres else rows) * gain


def model_dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
