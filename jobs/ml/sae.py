"""Sparse autoencoders: x [B, D] -> codes f [B, M] >= 0 -> reconstruction [B, D].

Shapes: W_enc and W_dec [M, D], one row per latent (SAELens stores W_enc the other way round: saelens.py turns
it); b_enc [M]; b_dec [D]. Both architectures compute a = (x - b_dec) W_enc^T + b_enc and x_hat = f W_dec +
b_dec.

The norms of the decoder rows are free in training, and whatever asks for sparsity looks at a_i * ||W_dec_i||,
the length of what latent i would write: nothing is gained by shrinking one weight and growing the other, so
no row needs to be renormalised nor any gradient projected. `folded` moves the norms (and the scale of the
inputs) into the encoder: the result has unit decoder rows, reads unscaled activations, and computes the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.ml.errors import WithHint
from jobs.ml.sparse import Decode, Encode, Routing, choose

INITIAL_NORM = 0.1  # of the rows of W_dec and W_enc, as in SAELens
TINY = 1e-12


class Codes(NamedTuple):
    """The non-zero entries of f [B, M], rows ascending."""

    rows: Tensor  # int64 [n]
    latents: Tensor  # int64 [n]
    values: Tensor  # float32 [n], > 0


@dataclass
class Fit:
    """One batch through the autoencoder, with what training needs."""

    loss: Tensor  # scalar, to be minimised
    x_hat: Tensor  # [B, D]
    fired: Tensor  # [M]: on how many of the batch's rows each latent is active
    parts: dict[str, Tensor]  # scalars: what the loss is the sum of


class Sae(nn.Module):
    architecture: ClassVar[str]

    def __init__(self, d_in: int, width: int, *, folded: bool = False) -> None:
        """folded: decoder norms no longer count, because they are one."""
        super().__init__()
        self.d_in, self.width, self.is_folded = d_in, width, folded
        self.W_enc = nn.Parameter(torch.zeros(width, d_in))
        self.W_dec = nn.Parameter(torch.zeros(width, d_in))
        self.b_enc = nn.Parameter(torch.zeros(width))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    def options(self) -> dict[str, Any]:
        """What the constructor needs beside the sizes."""
        return {}

    @torch.no_grad()
    def initialise(self, seed: int, b_dec: Tensor) -> None:
        """Random directions, W_enc = W_dec; b_dec [D] is where the data has its centre."""
        random = torch.Generator().manual_seed(seed)
        rows = F.normalize(torch.randn(self.width, self.d_in, generator=random), dim=1) * INITIAL_NORM
        self.W_dec.copy_(rows)
        self.W_enc.copy_(rows)
        self.b_enc.zero_()
        self.b_dec.copy_(b_dec)

    def decoder_norms(self) -> Tensor:
        """[M]; ones once folded."""
        return torch.ones_like(self.b_enc) if self.is_folded else self.W_dec.norm(dim=1)

    def preactivations(self, x: Tensor) -> Tensor:
        """[B, M]; with a gradient for every parameter, but none for x.

        b_dec comes in twice, as a number and as a zero with a gradient: that spares a product of the size [B,
        M] x [M, D].
        """
        b_dec = self.b_dec.detach()
        return F.linear(x - b_dec, self.W_enc, self.b_enc + self.W_enc @ (b_dec - self.b_dec))

    def encode(self, x: Tensor) -> Tensor:
        """f [B, M]"""
        raise NotImplementedError

    def active(self, x: Tensor) -> Codes:
        """encode(x) without its zeros."""
        f = self.encode(x)
        rows, latents = f.nonzero(as_tuple=True)
        return Codes(rows, latents, f[rows, latents])

    def decode(self, f: Tensor) -> Tensor:
        """x_hat [B, D] of f [B, M]"""
        return f @ self.W_dec + self.b_dec

    def decode_active(self, codes: Codes, n_rows: int) -> Tensor:
        """x_hat [n_rows, D] of the codes of n_rows inputs"""
        first = torch.bincount(codes.rows, minlength=n_rows).cumsum(0)
        first = first - first.diff(prepend=first.new_zeros(1))
        return (
            F.embedding_bag(codes.latents, self.W_dec, first, mode="sum", per_sample_weights=codes.values) + self.b_dec
        )

    def forward(self, x: Tensor) -> Tensor:
        """x_hat [B, D]"""
        return self.decode(self.encode(x))

    def fit(self, x: Tensor, sparsity: float) -> Fit:
        """The training objective on x [B, D]; sparsity: the weight of the penalty, where the architecture has
        one.
        """
        raise NotImplementedError

    @torch.no_grad()
    def folded(self, scale: float = 1.0) -> Self:
        """The same function of unscaled inputs x, where this one was trained on scale * x. Decoder rows have
        norm 1.
        """
        norms = self.decoder_norms().clamp_min(TINY)
        same = type(self)(self.d_in, self.width, folded=True, **self.options()).to(self.W_dec.device)
        same.W_enc.copy_(self.W_enc * norms[:, None])
        same.b_enc.copy_(self.b_enc * norms / scale)
        same.W_dec.copy_(self.W_dec / norms[:, None])
        same.b_dec.copy_(self.b_dec / scale)
        return same


class TopK(Sae):
    """The k largest a_i ||W_dec_i|| of each row survive, if positive (Gao et al. 2024, arXiv:2406.04093)."""

    architecture = "topk"

    def __init__(self, d_in: int, width: int, k: int, *, folded: bool = False) -> None:
        super().__init__(d_in, width, folded=folded)
        self.k = k

    def options(self) -> dict[str, Any]:
        return {"k": self.k}

    @torch.no_grad()
    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The pre-activations [B, k] that survive and their latents [B, k], in no order."""
        x = x - self.b_dec
        if self.is_folded:
            return choose(x, self.W_enc, self.b_enc, self.k)
        norms = self.decoder_norms().clamp_min(TINY)
        values, latents = choose(x, self.W_enc * norms[:, None], self.b_enc * norms, self.k)
        return values / norms[latents], latents

    def encode(self, x: Tensor) -> Tensor:
        values, latents = self.choose(x)
        return x.new_zeros(len(x), self.width).scatter_(1, latents, values.relu())

    @torch.no_grad()
    def active(self, x: Tensor) -> Codes:
        values, latents = self.choose(x)
        rows, places = (values > 0).nonzero(as_tuple=True)
        return Codes(rows, latents[rows, places], values[rows, places])

    def forward(self, x: Tensor) -> Tensor:
        values, latents = self.choose(x)
        return F.embedding_bag(latents, self.W_dec, mode="sum", per_sample_weights=values.relu()) + self.b_dec

    def fit(self, x: Tensor, sparsity: float) -> Fit:
        values, latents = self.choose(x)
        routing = Routing(latents, self.width)
        f = Encode.apply(values, x, self.W_enc, self.b_enc, self.b_dec, routing).relu()
        x_hat = Decode.apply(f, self.W_dec, routing) + self.b_dec
        fired = torch.zeros_like(self.b_enc).scatter_add_(0, latents.flatten(), (f > 0).float().flatten())
        mse = squared_error(x, x_hat)
        return Fit(mse, x_hat, fired, {"mse": mse})


class Standard(Sae):
    """ReLU, and an L1 penalty weighted by the decoder norms (Anthropic, Circuits Updates of April 2024)."""

    architecture = "standard"

    def encode(self, x: Tensor) -> Tensor:
        return F.linear(x - self.b_dec, self.W_enc, self.b_enc).relu()

    def fit(self, x: Tensor, sparsity: float) -> Fit:
        f = self.preactivations(x).relu()
        x_hat = self.decode(f)
        mse = squared_error(x, x_hat)
        l1 = (f @ self.decoder_norms()).mean()
        fired = (f.detach() > 0).sum(0).float()
        return Fit(mse + sparsity * l1, x_hat, fired, {"mse": mse, "l1": l1})


ARCHITECTURES: Mapping[str, type[Sae]] = {cls.architecture: cls for cls in (TopK, Standard)}


def build(architecture: str, d_in: int, width: int, k: int | None = None, *, folded: bool = False) -> Sae:
    """Raises ValueError for an architecture that does not exist."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{architecture!r} is no architecture: there are {', '.join(ARCHITECTURES)}.")
    options: dict[str, Any] = {"k": k} if architecture == "topk" else {}
    return ARCHITECTURES[architecture](d_in, width, folded=folded, **options)


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """Summed over the dimensions, mean over the tokens."""
    return (x - x_hat).square().sum(-1).mean()


def revive(sae: Sae, x: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
    """AuxK: how well the dead latents alone, the D/2 strongest per row, explain the residual x - x_hat [B,
    D]. Scalar.

    dead: int64 [n]. The residual is a target, not a path for gradients; b_dec is not added to its
    reconstruction (it is in x_hat already), and the error is relative to the residual itself: 1 is no help
    at all. The encoder rows get their gradient, so that a dead latent learns when to fire (Gao et al.
    2024, A.2, with the corrections of the peers' code: see sae.md).
    """
    W_enc, W_dec = sae.W_enc[dead], sae.W_dec[dead]
    a = F.linear(x - sae.b_dec.detach(), W_enc, sae.b_enc[dead])
    strength = a.detach() * sae.decoder_norms()[dead].detach()
    chosen = strength.topk(min(max(1, sae.d_in // 2), len(dead)), dim=-1, sorted=False).indices
    f = torch.zeros_like(a).scatter(1, chosen, a.gather(1, chosen).relu())
    return squared_error(residual, f @ W_dec) / residual.square().sum(-1).mean().clamp_min(1e-6)


@torch.no_grad()
def geometric_median(x: Tensor, iterations: int = 100, tolerance: float = 1e-5) -> Tensor:
    """The point [D] with the least summed distance to the rows of x [N, D] (Weiszfeld's algorithm)."""
    median = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - median).norm(dim=1, keepdim=True).clamp_min(1e-8)
        moved = (x * weights).sum(0) / weights.sum()
        if (moved - median).norm() <= tolerance * median.norm():
            return moved
        median = moved
    return median


@torch.no_grad()
def input_scale(x: Tensor) -> float:
    """What makes the mean norm of the rows of x [N, D] equal sqrt(D). Raises ValueError where all are
    zero.
    """
    norm = x.norm(dim=1).mean().item()
    if norm == 0:
        raise WithHint("all activations are zero: there is nothing to learn at this site.")
    return x.shape[1] ** 0.5 / norm
