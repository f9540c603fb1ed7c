"""AuxK: a second objective for latents that no longer fire."""

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.ml.parallel import Ranks
from jobs.ml.sae import Sae, squared_error


def variance(residual: Tensor, ranks: Ranks) -> Tensor:
    """Of the rows of y - x_hat [B, D] of all processes, summed over the dimensions. Scalar."""
    mean = ranks.mean(residual.mean(0))
    return ranks.mean(squared_error(residual, mean.expand_as(residual)))


def revive(sae: Sae, x: Tensor, residual: Tensor, dead: Tensor, scale: Tensor | None = None) -> Tensor:
    """How well the dead latents alone, the D/2 strongest per row, explain the residual y - x_hat [B, D]. Scalar.

    dead: int64 [n]. scale: the variance of the residual in the whole batch; None: this is the whole batch.

    The residual is a target, not a path for gradients; b_dec is not added to its reconstruction (it is in x_hat
    already), and the error is relative to the variance: 1 is no help at all. The encoder rows get their gradient, so
    that a dead latent learns when to fire (Gao et al. 2024, A.2, with the corrections of the peers' code: see
    docs/correctness.md).
    """
    W_enc, W_dec = sae.W_enc[dead], sae.W_dec[dead]
    a = F.linear(x - sae.b_dec.detach() if sae.centred else x, W_enc, sae.b_enc[dead])
    strength = a.detach() * sae.decoder_norms()[dead].detach()
    n = min(max(1, sae.d_out // 2), len(dead))
    chosen = (strength.abs() if sae.signed else strength).topk(n, dim=-1, sorted=False).indices
    kept = a.gather(1, chosen)
    f = torch.zeros_like(a).scatter(1, chosen, kept if sae.signed else kept.relu())
    scale = variance(residual, sae.ranks) if scale is None else scale
    return squared_error(residual, f @ W_dec) / scale.clamp_min(1e-6)
