"""JumpReLU: Rajamanoharan et al. 2024, Jumping ahead, arXiv:2407.14435; with the tanh penalty and the loss for dead
latents of Anthropic's Circuits Updates of January 2025, or a quadratic one, which aims at an L0.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from jobs.ml.sae import Moment, Sae, Seen, Shape, Term
from jobs.ml.selection import above_floor, preactivations
from jobs.ml.support import Dense, Support

TANH_SLOPE = 4.0  # Anthropic's c
CHUNK = 2**18  # numbers of a gradient computed at once on a CPU


class JumpReLU(Sae):
    """f = a where a > threshold. A threshold moves by what lies within half a bandwidth of it; it is trained as it is,
    not as a logarithm, in which Adam hardly moves it. Adam moves a number by the learning rate at most: that of the
    thresholds is so large in short trainings that they get to where they belong.

    The quadratic loss holds the mean L0 of a batch to a target, as in dictionary_learning; held to it one by one, as in
    SAELens, rows would have to be alike in L0. Its weight is relative to D, which is about the error before training.
    At first the target falls, by the same factor in each step, from half of the latents, about as many as are active
    then: thresholds that rise as fast as they can overshoot, and latents die."""

    architecture = "jumprelu"
    TAKES = ("bandwidth", "initial_threshold", "ste_to_input")
    reach: ClassVar[Mapping[str, float]] = {"threshold": 3.0}

    def __init__(
        self,
        d_in: int,
        width: int,
        bandwidth: float = 0.05,
        initial_threshold: float = 0.0,
        ste_to_input: int = 0,
        **shape: Unpack[Shape],
    ) -> None:
        super().__init__(d_in, width, **shape)
        self.bandwidth, self.initial_threshold, self.ste_to_input = bandwidth, initial_threshold, ste_to_input
        self.threshold = nn.Parameter(torch.full((width,), initial_threshold))
        self.l0: Tensor | None = None  # the mean of the batch at hand, where no part of it tells that

    def support(self, x: Tensor, dtype: torch.dtype | None = None) -> Support:
        """Trained, also what is near enough below a threshold to move it."""
        floor = self.threshold.detach().clamp_min(0)
        return above_floor(x, self.encoder(), floor if self.is_folded else floor - self.bandwidth / 2, dtype)

    @torch.no_grad()
    def observe(self, x: Tensor, support: Support, moment: Moment) -> None:
        partly = moment.config.part_of(len(x)) < len(x)
        aims = moment.config.options["l0_loss"] == "quadratic"
        self.l0 = self.ranks.mean(self.mean_l0(x, support)) if aims and partly else None

    def mean_l0(self, x: Tensor, support: Support) -> Tensor:
        """Of x [B, D], for which no [B, M] is made."""
        threshold = self.threshold.clamp_min(0)
        if isinstance(support, Dense):
            counts = [(a > threshold).sum() for _, a in preactivations(x, self.encoder(), None)]
        else:
            counts = [(support.encode(x, self.encoder()) > support.at(threshold)).sum()]
        return torch.stack(counts).sum().to(x.dtype) / len(x)

    def activate(self, a: Tensor, support: Support) -> Tensor:
        return Jump.apply(a, *self.place(support))

    def place(self, support: Support) -> tuple[Tensor, float, int]:
        return support.at(self.threshold.clamp_min(0)), self.bandwidth, self.ste_to_input

    def terms(self, seen: Seen, moment: Moment) -> list[Term]:
        config, support, n = moment.config, seen.support, len(seen.x)
        weight = config.warmed("l0_coefficient", moment.step)
        if config.options["l0_loss"] == "tanh":
            lengths = seen.f * support.at(self.decoder_norms())
            terms: list[Term] = [("tanh", weight, torch.tanh(TANH_SLOPE * lengths).sum() / n)]
        else:
            l0 = support.per_row(Step.apply(seen.a, *self.place(support))).mean()
            if config.options["l0_loss"] == "quadratic":
                full = float(config.options["l0_coefficient"]) * seen.y.shape[1]
                terms = [("l0_miss", full, self.squared_miss(l0, moment))]
            else:
                terms = [("l0_price", weight, l0)]
        return [*terms, *self.bring_back(seen.x, moment)]

    def squared_miss(self, l0: Tensor, moment: Moment) -> Tensor:
        """(L0 / target - 1)² of the whole batch. Its parts, with an L0 of their own, do not know that of the others:
        theirs add up to it, and their gradients to its gradient."""
        target, left = float(moment.config.options["target_l0"]), 1 - moment.config.risen(moment.step)
        aim = target * max(1.0, self.width / 2 / target) ** left
        whole = self.ranks.mean(l0.detach()) if self.l0 is None else self.l0
        miss = (whole / aim - 1).clamp_min(0.0 if left else -1.0)  # a target that falls anyway pulls nothing up
        return miss * (miss + 2 * (l0 - whole) / aim)

    def bring_back(self, x: Tensor, moment: Moment) -> list[Term]:
        """For dead latents: how far each stays below its threshold, times the length it would write."""
        weight, dead = float(moment.config.options["dead_coefficient"]), moment.dead
        if not weight or not len(dead):
            return []
        a = F.linear(x - self.b_dec if self.centred else x, self.W_enc[dead], self.b_enc[dead])
        short = (self.threshold[dead] - a).relu() * self.decoder_norms()[dead]
        return [("dead_gap", weight, short.sum() / len(x))]

    def inference(self, norms: Tensor, unit: Tensor) -> Sae:
        same = JumpReLU(self.d_in, self.width, **self.shape | {"folded": True})
        same.threshold.data.copy_(self.threshold.clamp_min(0) * norms)
        return same


class Estimate(Function):
    """Straight-through: the jump is taken for a slope within half a bandwidth of the threshold. It goes to the
    threshold (Rajamanoharan et al.), and to the pre-activation too where `to_input` says so (Anthropic).

    a [n] with thresholds [n], or [B, M] with thresholds [M]."""

    @classmethod
    def forward(cls, ctx: Any, a: Tensor, threshold: Tensor, bandwidth: float, to_input: int) -> Tensor:
        ctx.save_for_backward(a, threshold)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return cls.value(a, a > threshold)

    @classmethod
    def backward(cls, ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        a, threshold = ctx.saved_tensors
        height = cls.value(threshold, torch.ones_like(threshold, dtype=torch.bool)) / ctx.bandwidth
        g_a = torch.empty_like(a) if cls.slopes or ctx.to_input else None
        g_threshold = torch.zeros_like(threshold)
        for rows in parts(a):
            beyond = a[rows] - threshold
            on = beyond > 0
            near = torch.where(beyond.abs_() < ctx.bandwidth / 2, g[rows], 0.0)
            g_threshold -= near.sum_to_size(threshold.shape)
            if g_a is not None:
                own = g_a[rows]
                torch.mul(g[rows], on, out=own) if cls.slopes else own.zero_()
                if ctx.to_input:
                    own.addcmul_(near, height)
        return g_a, g_threshold * height, None, None

    slopes: ClassVar[bool]  # does its value rise with a, above the threshold?

    @staticmethod
    def value(a: Tensor, on: Tensor) -> Tensor:
        raise NotImplementedError


class Jump(Estimate):
    """a where it is above the threshold, else 0."""

    slopes = True

    @staticmethod
    def value(a: Tensor, on: Tensor) -> Tensor:
        return torch.where(on, a, 0.0)


class Step(Estimate):
    """1 where a is above the threshold, else 0."""

    slopes = False

    @staticmethod
    def value(a: Tensor, on: Tensor) -> Tensor:
        return on.to(a.dtype)


def parts(a: Tensor) -> Iterator[slice]:
    """Rows of a [B, M] that stay in a processor's cache; of a list of places, and on a GPU, all at once."""
    size = max(1, CHUNK // a.shape[1]) if a.dim() == 2 and a.device.type == "cpu" else len(a)
    return (slice(start, start + size) for start in range(0, len(a), size or 1))
