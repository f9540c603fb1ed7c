"""Sparse autoencoders: x [B, D] -> codes f [B, M] -> reconstruction [B, D].

Shapes: W_enc [M, D] and W_dec [M, D], one row per latent (SAELens stores W_enc the other way round: saelens.py turns
it); b_enc [M]; b_dec [D]. What all architectures share: a = (x - b_dec) W_enc^T + b_enc and x_hat = f W_dec + b_dec.
They differ in what becomes of a, and in what beside the error is to be small: see architectures/.

The norms of the decoder rows are free in training (but those of Gated), and whatever asks for sparsity looks at
a_i * ||W_dec_i||, the length of what latent i would write: nothing is gained by shrinking one weight and growing the
other, so no row needs to be renormalised nor any gradient projected. `folded` moves the norms (and the scale of the
inputs) into the encoder: the result has unit decoder rows, reads unscaled activations, and computes the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from jobs.ml.config import TrainConfig
from jobs.ml.parallel import ALONE, Ranks
from jobs.ml.support import Codes, Linear, Support, gather_sum

TINY = 1e-12
Term = tuple[str, float, Tensor]  # of an objective: its name, its weight, its value


@dataclass(frozen=True)
class Moment:
    """When in a training."""

    config: TrainConfig
    step: int
    dead: Tensor  # int64 [n], latents


class Seen(NamedTuple):
    """A batch on its way through the autoencoder."""

    x: Tensor  # [B, D]
    y: Tensor  # [B, D_out], the target: x itself for an autoencoder
    support: Support
    a: Tensor  # pre-activations at the entries of the support
    f: Tensor  # codes there


@dataclass
class Fit:
    """One batch through the autoencoder, with what training needs."""

    loss: Tensor  # scalar, to be minimised
    x_hat: Tensor  # [B, D]
    fired: Tensor  # [M]: on how many of the batch's rows each latent is active
    parts: dict[str, Tensor]  # scalars: what the loss is the sum of, unweighted


class Shape(TypedDict, total=False):
    """What an autoencoder and a transcoder differ in."""

    d_out: int | None  # of the outputs; None: the inputs'
    centred: bool  # b_dec is taken off the input
    skip: bool  # a linear map from input to output beside the latents, which starts at zero
    folded: bool  # decoder norms no longer count, because they are one


class Sae(nn.Module):
    architecture: ClassVar[str]
    TAKES: ClassVar[tuple[str, ...]] = ()  # options that the constructor takes, beside the shape
    signed: ClassVar[bool] = False  # codes may be negative
    reach: ClassVar[Mapping[str, float]] = {}  # of parameters: how far a training must be able to move each number
    initial_norms: ClassVar[tuple[float, float]] = (0.1, 0.1)  # of the rows of W_enc and W_dec, as in SAELens
    ranks: Ranks = ALONE  # that train it together: a batch is what all of them see

    def __init__(self, d_in: int, width: int, **shape: Unpack[Shape]) -> None:
        super().__init__()
        self.d_in, self.width, self.d_out = d_in, width, shape.get("d_out") or d_in
        self.centred, self.is_folded = shape.get("centred", True), shape.get("folded", False)
        self.W_enc = nn.Parameter(torch.zeros(width, d_in))
        self.W_dec = nn.Parameter(torch.zeros(width, self.d_out))
        self.b_enc = nn.Parameter(torch.zeros(width))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.W_skip = nn.Parameter(torch.zeros(self.d_out, d_in)) if shape.get("skip") else None

    @property
    def shape(self) -> Shape:
        return {"d_out": self.d_out, "centred": self.centred, "skip": self.W_skip is not None, "folded": self.is_folded}

    def options(self) -> dict[str, Any]:
        """What the constructor needs beside the shape."""
        return {name: getattr(self, name) for name in self.TAKES}

    @torch.no_grad()
    def initialise(self, seed: int, b_dec: Tensor, centre: Tensor) -> None:
        """Random directions, the same to read and to write where that is possible; b_dec [D_out] is where the outputs
        have their centre, `centre` [D] the inputs: it goes into b_enc where b_dec is not taken off."""
        random, (read, written) = torch.Generator().manual_seed(seed), self.initial_norms
        rows = F.normalize(torch.randn(self.W_dec.shape, generator=random), dim=1)
        self.W_dec.copy_(rows * written)
        if not self.centred:
            rows = F.normalize(torch.randn(self.W_enc.shape, generator=random), dim=1)
        self.W_enc.copy_(rows * read)
        self.b_enc.copy_(torch.zeros_like(self.b_enc) if self.centred else -(self.W_enc @ centre))
        self.b_dec.copy_(b_dec)

    def decoder_norms(self) -> Tensor:
        """[M]; ones once folded."""
        return torch.ones_like(self.b_enc) if self.is_folded else self.W_dec.norm(dim=1)

    def encoder(self) -> Linear:
        return Linear(self.W_enc, self.b_enc, self.b_dec if self.centred else None)

    @torch.no_grad()
    def weighted_encoder(self) -> Linear:
        """Whose pre-activations are a_i ||W_dec_i||."""
        if self.is_folded:
            return self.encoder()
        norms = self.decoder_norms().clamp_min(TINY)
        return Linear(self.W_enc * norms[:, None], self.b_enc * norms, self.b_dec if self.centred else None)

    # ---- what an architecture is

    def support(self, x: Tensor, dtype: torch.dtype | None = None) -> Support:
        """Where the codes of x [B, D] may be other than zero; dtype: of the product that decides it, None: x's."""
        raise NotImplementedError

    def activate(self, a: Tensor, support: Support) -> Tensor:
        """The codes at the entries of the support, from the pre-activations there."""
        return a.relu()

    def terms(self, seen: Seen, moment: Moment) -> list[Term]:
        """What is added to the squared error."""
        return []

    def observe(self, x: Tensor, support: Support, moment: Moment) -> None:
        """Seen once before every step, with the whole batch."""

    def constrain(self) -> None:
        """After every step: brings the weights back to where they must be."""

    # ---- what all do with it

    def fit(self, x: Tensor, y: Tensor, support: Support, moment: Moment) -> Fit:
        """The training objective on x [B, D] and its target y [B, D_out]."""
        seen = self.seen(x, y, support)
        *inner, x_hat = self.reconstructions(seen)
        mse = squared_error(y, x_hat)
        terms = [*self.terms(seen, moment), *(("nested", 1.0, squared_error(y, part)) for part in inner)]
        loss = mse + sum(weight * value for _, weight, value in terms)
        fired = support.per_latent((seen.f.detach() != 0).to(x.dtype))
        parts = {name: torch.stack([v for other, _, v in terms if other == name]).sum() for name, _, _ in terms}
        return Fit(loss, x_hat, fired, {"mse": mse, **parts})

    def seen(self, x: Tensor, y: Tensor, support: Support) -> Seen:
        a = support.encode(x, self.encoder())
        return Seen(x, y, support, a, self.activate(a, support))

    @torch.no_grad()
    def residual(self, x: Tensor, y: Tensor, support: Support) -> Tensor:
        """y - x_hat [B, D_out]"""
        return y - self.reconstructions(self.seen(x, y, support))[-1]

    def reconstructions(self, seen: Seen) -> list[Tensor]:
        """x_hat [B, D_out] last; before it those of the dictionaries within, where there are some."""
        return [seen.support.decode(seen.f, self.W_dec) + self.bypass(seen.x)]

    def bypass(self, x: Tensor) -> Tensor:
        """What is written whatever the latents are."""
        return self.b_dec if self.W_skip is None else F.linear(x, self.W_skip, self.b_dec)

    @torch.no_grad()
    def active(self, x: Tensor) -> Codes:
        """The codes of x [B, D] that are not zero."""
        support = self.support(x)
        return support.codes(self.activate(support.encode(x, self.encoder()), support))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """f [B, M]"""
        codes = self.active(x)
        return x.new_zeros(len(x), self.width).index_put_((codes.rows, codes.latents), codes.values)

    @torch.no_grad()
    def decode_active(self, codes: Codes, x: Tensor) -> Tensor:
        """x_hat [B, D] of the codes of x [B, D]"""
        counts = torch.bincount(codes.rows, minlength=len(x))
        starts = counts.cumsum(0) - counts
        return gather_sum(self.W_dec, codes.latents, starts, codes.values) + self.bypass(x)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x_hat [B, D]"""
        return self.decode_active(self.active(x), x)

    @torch.no_grad()
    def folded(self, scale_in: Tensor | float = 1.0, scale_out: Tensor | float | None = None) -> "Sae":
        """The same function of unscaled inputs x, where this one was trained on scale_in * x and targets scale_out * y.
        Scales: numbers, or one for each dimension. Decoder rows have norm 1 (in the units of training, where the scales
        of several sites differ)."""
        s_in = torch.as_tensor(scale_in, device=self.W_dec.device, dtype=self.W_dec.dtype)
        s_out = s_in if scale_out is None else torch.as_tensor(scale_out, device=s_in.device, dtype=s_in.dtype)
        unit = s_out.log().mean().exp()
        norms = self.decoder_norms().clamp_min(TINY) / unit  # of what a latent writes, in the units of y
        same = self.inference(norms, unit).to(self.W_dec)
        same.W_enc.copy_(self.W_enc * s_in * norms[:, None])
        same.b_enc.copy_(self.b_enc * norms)
        same.W_dec.copy_(self.W_dec / s_out / norms[:, None])
        same.b_dec.copy_(self.b_dec / s_out)
        if self.W_skip is not None and same.W_skip is not None:
            same.W_skip.copy_(self.W_skip * s_in / s_out.reshape(-1, 1))
        return same

    def inference(self, norms: Tensor, unit: Tensor) -> "Sae":
        """What it is once folded, without the weights that all have; codes come out `norms` [M] times as large, and a
        threshold of a_i ||W_dec_i|| is divided by `unit`."""
        return type(self)(self.d_in, self.width, **self.options(), **self.shape | {"folded": True})


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """Of x [B, D], which is no parameter's: summed over the dimensions, mean over the tokens."""
    return SquaredError.apply(x, x_hat)


class SquaredError(Function):
    """As F.mse_loss, in fewer passes over [B, D]. By rows: the norm of a whole matrix is not exact."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, x_hat: Tensor) -> Tensor:
        error = x_hat - x
        ctx.save_for_backward(error)
        return torch.linalg.vector_norm(error, dim=1).square_().sum() / len(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (error,) = ctx.saved_tensors
        return None, error * (gradient * (2 / len(error)))
