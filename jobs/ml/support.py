"""The support of a batch's codes: which latents of which rows may be other than zero, and linear maps through those.

A dense training step costs 12 B D M multiplications, and most of them meet zeros. With S [B, M] the codes, decoding is
S W, and the weight gradients are S^T G: sums of few rows, which is what embedding_bag computes. Where too many latents
are active for that to pay (a ReLU at its start), `Dense` does the same with whole matrices, so an objective is written
once: over "entries", which are the routed places [n] of a `Sparse` support, or all places [B, M] of a `Dense` one.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from jobs.ml import compiled, fused

gather_dot = torch.ops.aten._embedding_bag_per_sample_weights_backward
COLUMNS = 64  # of a table that are gathered together where whole rows of all of it would leave a processor's cache
CACHED = 2**20  # numbers in a table that stays there
OFTEN = 8  # times that a row is to be gathered for that to pay
BLOCK = 3 * 2**17  # numbers in vectors that stay in a processor's own cache while they meet all rows of a table
TWICE = 2  # times that they must meet each for that to pay


class Codes(NamedTuple):
    """The non-zero entries of f [B, M], rows ascending."""

    rows: Tensor  # int64 [n]
    latents: Tensor  # int64 [n]
    values: Tensor  # float32 [n]

    def positive(self) -> "Codes":
        kept = self.values > 0
        return self if bool(kept.all()) else Codes(self.rows[kept], self.latents[kept], self.values[kept])


class Linear(NamedTuple):
    """An encoder: (x - centre) W^T + b; no gradient for x. W [M, D], b [M], centre [D]."""

    W: Tensor
    b: Tensor
    centre: Tensor | None  # None: nothing is taken off


class Support(Protocol):
    """n entries stand for [n] (Sparse) or [B, M] (Dense)."""

    def encode(self, x: Tensor, encoder: Linear) -> Tensor:
        """Pre-activations at the entries, of x [B, D]."""

    def decode(self, f: Tensor, W: Tensor) -> Tensor:
        """[B, D]: the rows of W [M, D], weighted with the entries f."""

    def at(self, latents: Tensor) -> Tensor:
        """What each entry's latent has in a vector [M]."""

    def per_latent(self, f: Tensor) -> Tensor:
        """[M]: the entries of each latent, summed."""

    def per_row(self, f: Tensor) -> Tensor:
        """[B]: the entries of each row, summed."""

    def decode_parts(self, widths: Sequence[int], f: Tensor, W: Tensor) -> list[Tensor]:
        """decode() by the first so many latents alone, by the next so many …"""

    def part(self, start: int, end: int) -> "Support":
        """That of the rows from start to end."""

    def codes(self, f: Tensor) -> Codes:
        """What is not zero in the entries."""


def in_parts(size: int, support: Support, *rows: Tensor) -> Iterator[tuple[Support, list[Tensor]]]:
    """The support of up to `size` rows at a time, and those rows of each tensor."""
    for start in range(0, n := len(rows[0]), size):
        end = min(start + size, n)
        own = support if end - start == n else support.part(start, end)
        yield own, [tensor[start:end] for tensor in rows]


class Sparse:
    """Places in [B, M]: latents int64 [n], those of one row together; starts int64 [B], the first place of each row."""

    def __init__(
        self, latents: Tensor, starts: Tensor, width: int, values: Tensor | None = None, k: int | None = None
    ) -> None:
        """values [n]: the pre-activations, where they are known to full precision. k: the places of each row, where all
        have as many."""
        self.latents, self.starts, self.width, self.values, self.k = latents, starts, width, values, k
        self.orders: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # see in_blocks

    @classmethod
    def of_rows(cls, latents: Tensor, width: int, values: Tensor | None = None) -> "Sparse":
        """latents [B, k], and the values of the same shape"""
        B, k = latents.shape
        starts = torch.arange(0, B * k, k, device=latents.device)
        return cls(latents.reshape(-1), starts, width, None if values is None else values.reshape(-1), k)

    @classmethod
    def of_pairs(cls, rows: Tensor, latents: Tensor, n_rows: int, width: int, values: Tensor | None = None) -> "Sparse":
        """rows, latents [n], rows ascending"""
        counts = torch.bincount(rows, minlength=n_rows)
        return cls(latents, counts.cumsum(0) - counts, width, values)

    @cached_property
    def rows(self) -> Tensor:
        """The row of each place [n]."""
        counts = self.starts.diff(append=self.starts.new_full((1,), len(self.latents)))
        rows = torch.arange(len(self.starts), device=self.latents.device)
        return rows.repeat_interleave(counts, output_size=len(self.latents))

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The places sorted by latent [n], their rows [n], the first of each latent [M]."""
        places, first = sort(self.latents, self.width)
        return places, self.rows.index_select(0, places), first

    def encode(self, x: Tensor, encoder: Linear) -> Tensor:
        return Encode.apply(x, *encoder, self)

    def decode(self, f: Tensor, W: Tensor) -> Tensor:
        return Decode.apply(f, W, self)

    def at(self, latents: Tensor) -> Tensor:
        return latents.index_select(0, self.latents)

    def per_latent(self, f: Tensor) -> Tensor:
        if fused.usable(f) and not f.requires_grad:
            return self.sum_rows(f, f.new_ones(len(self.starts), 1)).flatten()
        return f.new_zeros(self.width).index_add_(0, self.latents, f)

    def per_row(self, f: Tensor) -> Tensor:
        return f.new_zeros(len(self.starts)).index_add(0, self.rows, f)

    def decode_parts(self, widths: Sequence[int], f: Tensor, W: Tensor) -> list[Tensor]:
        ends = torch.tensor(widths, device=self.latents.device).cumsum(0)
        places, starts = sort(torch.bucketize(self.latents, ends, right=True), len(widths))
        counts = starts.diff(append=starts.new_full((1,), len(places))).tolist()
        rows, latents, codes = (values.index_select(0, places).split(counts) for values in (self.rows, self.latents, f))
        return [
            Sparse.of_pairs(rows[n], latents[n] - sum(widths[:n]), len(self.starts), width).decode(codes[n], part)
            for n, (width, part) in enumerate(zip(widths, W.split(widths), strict=True))
        ]

    def part(self, start: int, end: int) -> "Sparse":
        first, last = self.place(start), self.place(end)
        values = None if self.values is None else self.values[first:last]
        return Sparse(self.latents[first:last], self.starts[start:end] - first, self.width, values, self.k)

    def place(self, row: int) -> int:
        """The first of the row."""
        if self.k is not None:
            return row * self.k
        return int(self.starts[row]) if row < len(self.starts) else len(self.latents)

    def codes(self, f: Tensor) -> Codes:
        kept = f.nonzero().flatten()
        return Codes(self.rows[kept], self.latents[kept], f[kept])

    def sum_rows(self, weights: Tensor, vectors: Tensor) -> Tensor:
        """S^T V [M, D] for S with `weights` [n] at the places and V [B, D]."""
        places, rows, first = self.by_latent
        return gather_sum(vectors, rows, first, weights.index_select(0, places))

    def dot_rows(self, vectors: Tensor, table: Tensor) -> Tensor:
        """[n]: the products of V [B, D] with the routed rows of a table [M, D]."""
        if fused.usable(table):
            return fused.gather_dot(vectors, table, self.latents, self.starts)
        vectors, size = vectors.contiguous(), BLOCK // vectors.shape[1]
        often = size * len(self.latents) >= TWICE * len(self.starts) * len(table) and size < len(self.starts)
        if table.device.type != "cpu" or not often or table.numel() <= CACHED:
            return gather_dot(vectors, table, self.latents, self.starts, self.rows, 0)
        places, latents, rows = self.in_blocks(size)
        found = gather_dot(vectors, table, latents, self.starts, rows, 0)
        return torch.empty_like(found).scatter_(0, places, found)

    def in_blocks(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """The places by block of `size` rows, by latent within each [n]; their latents, and their rows."""
        if size not in self.orders:
            ends = [self.place(row) for row in range(0, len(self.starts), size)] + [len(self.latents)]
            blocks = [sort(self.latents[first:end], self.width)[0] + first for first, end in pairwise(ends)]
            places = torch.cat(blocks)
            self.orders[size] = places, self.latents.index_select(0, places), self.rows.index_select(0, places)
        return self.orders[size]


def sort(latents: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The places of latents [n] in their order, of equal ones as they come [n]; and where those of each begin [M]."""
    if compiled.INSTALLED and latents.device.type == "cpu":
        return compiled.sort(latents, width)
    small = torch.int16 if width <= 2**15 else torch.int32  # sorted in a fraction of the time
    values, places = latents.to(small).sort(stable=True)
    return places, torch.searchsorted(values, torch.arange(width, dtype=small, device=latents.device))


def gather_sum(table: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """[S, D]: the rows [n] of a table [N, D], weighted [n], summed from each of the starts [S] to the next."""
    if fused.usable(table):
        return fused.gather_sum(table, rows, starts, weights)
    often = len(rows) >= OFTEN * len(table) and table.numel() > CACHED
    if table.device.type != "cpu" or not often:
        return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights)
    parts = [
        F.embedding_bag(rows, columns, starts, mode="sum", per_sample_weights=weights)
        for columns in table.split(COLUMNS, dim=1)
    ]
    return torch.cat(parts, dim=1)


class Dense:
    """Every place in [B, M]."""

    def encode(self, x: Tensor, encoder: Linear) -> Tensor:
        """The centre comes in twice, as a number and as a zero with a gradient: that spares the gradient of x, a
        product of the size [B, M] x [M, D]."""
        if encoder.centre is None:
            return F.linear(x, encoder.W, encoder.b)
        centre = encoder.centre.detach()
        return F.linear(x - centre, encoder.W, encoder.b + encoder.W @ (centre - encoder.centre))

    def decode(self, f: Tensor, W: Tensor) -> Tensor:
        return f @ W

    def at(self, latents: Tensor) -> Tensor:
        return latents

    def per_latent(self, f: Tensor) -> Tensor:
        return f.sum(0)

    def per_row(self, f: Tensor) -> Tensor:
        return f.sum(1)

    def decode_parts(self, widths: Sequence[int], f: Tensor, W: Tensor) -> list[Tensor]:
        return [own @ part for own, part in zip(f.split(widths, dim=1), W.split(widths), strict=True)]

    def part(self, start: int, end: int) -> "Dense":
        return self

    def codes(self, f: Tensor) -> Codes:
        rows, latents = f.nonzero(as_tuple=True)
        return Codes(rows, latents, f[rows, latents])


class Encode(Function):
    """Pre-activations [n] of the support's places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor, centre: Tensor | None, support: Sparse) -> Tensor:
        x = x if centre is None else x - centre
        ctx.save_for_backward(x, W)
        ctx.support, ctx.centred = support, centre is not None
        if support.values is not None:
            return support.values.clone()
        return support.dot_rows(x, W).add_(support.at(b))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, W = ctx.saved_tensors
        support: Sparse = ctx.support
        g_b = support.per_latent(g)
        return None, support.sum_rows(g, x), g_b, -(g_b @ W) if ctx.centred else None, None


class Decode(Function):
    """[B, D]: the sum of the routed rows of W [M, D], weighted with f [n]."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, W: Tensor, support: Sparse) -> Tensor:
        ctx.save_for_backward(f, W)
        ctx.support = support
        return gather_sum(W, support.latents, support.starts, f)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        f, W = ctx.saved_tensors
        support: Sparse = ctx.support
        g = g.contiguous()
        g_f = support.dot_rows(g, W) if ctx.needs_input_grad[0] else None
        g_W = support.sum_rows(f, g) if ctx.needs_input_grad[1] else None
        return g_f, g_W, None
