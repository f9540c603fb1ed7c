"""Linear maps through k of M latents per row, with gradients that touch only those.

A dense TopK step costs 12 B D M multiplications and most of them meet zeros. Here the encoder's forward is
the only dense product. With S [B, M] the sparse codes, decoding is S W, and the weight gradients are S^T G:
both are sums of few rows, which is what embedding_bag computes.
"""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

CHUNK = 2**20  # pre-activations held at once on a CPU, so that they stay in its cache

gather_dot = torch.ops.aten._embedding_bag_per_sample_weights_backward


class Routing:
    """Which latents each row uses: latents int64 [B, k]."""

    def __init__(self, latents: Tensor, width: int) -> None:
        self.latents, self.width = latents, width

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The entries of `latents` sorted by latent: their places [B*k], their rows [B*k], first place of
        each latent [M].
        """
        flat = self.latents.reshape(-1)
        places = flat.argsort(stable=True)
        rows = torch.div(places, self.latents.shape[1], rounding_mode="floor")
        first = torch.zeros(self.width, dtype=torch.long, device=flat.device)
        first[1:] = torch.bincount(flat, minlength=self.width).cumsum(0)[:-1]
        return places, rows, first

    def sum_rows(self, weights: Tensor, vectors: Tensor) -> Tensor:
        """S^T V [M, D] for S with `weights` [B, k] at the routed places and V [B, D]."""
        places, rows, first = self.by_latent
        return F.embedding_bag(rows, vectors, first, mode="sum", per_sample_weights=weights.reshape(-1)[places])

    def dot_rows(self, vectors: Tensor, table: Tensor) -> Tensor:
        """[B, k]: the products of V [B, D] with the routed rows of a table [M, D]."""
        B, k = self.latents.shape
        starts = torch.arange(0, B * k, k, device=vectors.device)
        bags = torch.arange(B, device=vectors.device).repeat_interleave(k)
        return gather_dot(vectors.contiguous(), table, self.latents.reshape(-1), starts, bags, 0).view(B, k)


def choose(x: Tensor, W: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of x W^T + b in each row: values [B, k] and latents [B, k]; x [B, D], W [M, D], b [M]."""
    rows = max(1, CHUNK // len(W)) if x.device.type == "cpu" else len(x)
    values, latents = [], []
    for part in x.split(rows):
        top = torch.addmm(b, part, W.T).topk(k, dim=-1, sorted=False)
        values.append(top.values)
        latents.append(top.indices)
    return torch.cat(values), torch.cat(latents)


class Encode(Function):
    """Pre-activations [B, k] of the routed latents: (x - b_dec) W_enc^T + b_enc, given as `values`. No
    gradient for x.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, routing: Routing
    ) -> Tensor:
        ctx.save_for_backward(x, W_enc, b_dec)
        ctx.routing = routing
        return values.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc, b_dec = ctx.saved_tensors
        routing: Routing = ctx.routing
        g_b_enc = torch.zeros(routing.width, device=g.device).index_add_(0, routing.latents.reshape(-1), g.reshape(-1))
        g_W_enc = routing.sum_rows(g, x - b_dec)
        return None, None, g_W_enc, g_b_enc, -(g_b_enc @ W_enc), None


class Decode(Function):
    """[B, D]: the sum of the routed rows of W_dec [M, D], weighted with f [B, k]."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, W_dec: Tensor, routing: Routing) -> Tensor:
        ctx.save_for_backward(f, W_dec)
        ctx.routing = routing
        return F.embedding_bag(routing.latents, W_dec, mode="sum", per_sample_weights=f)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        f, W_dec = ctx.saved_tensors
        routing: Routing = ctx.routing
        return routing.dot_rows(g, W_dec), routing.sum_rows(f, g), None
