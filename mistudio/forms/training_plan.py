"""How many SAEs a filled form asks for, which they are, and the memory they take: before anything is started."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jobs.devices import CPU, Memory, memories
from jobs.ml.architectures import ARCHITECTURES
from mistudio.models import Training
from mistudio.models.plan import differences, products

STATE_BYTES = 16  # of a parameter, in float32: its value, its gradient, and the two moments of Adam
OWN_VECTORS = {"jumprelu": 1, "gated": 2}  # as long as the SAE is wide, beside the encoder's bias


def n_parameters(member: dict[str, Any], width_of: Callable[[str], int | None]) -> int | None:
    """None where a site's width is seen only when the model runs."""
    widths = [[width_of(site) for site in side] for side in (member["reads"], member["writes"] or member["reads"])]
    if any(width is None for side in widths for width in side):
        return None
    d_in, d_out = (sum(width or 0 for width in side) for side in widths)
    vectors = 1 + OWN_VECTORS.get(member["architecture"], 0)
    skip = d_in * d_out if ARCHITECTURES[member["architecture"]].skip else 0
    width: int = member["width"]
    return width * (d_in + d_out + vectors) + d_out + skip


@dataclass(frozen=True)
class Plan:
    training: Training

    @cached_property
    def saes(self) -> list[dict[str, Any]]:
        members = self.training.members
        width_of = self.training.language_model.site_width
        told = differences(members) if len(members) > 1 else [ARCHITECTURES[members[0]["architecture"]].label]
        counted = [n_parameters(member, width_of) for member in members]
        return [{"said": said, "parameters": n} for said, n in zip(told, counted, strict=True)]

    @property
    def product(self) -> str:
        """What is multiplied where that is the same for all: 2 widths × 3 values of k."""
        shares = products(self.training)
        factors = [share.factors for share in shares]
        many = [(len(shares), "architectures")] if len(shares) > 1 else []
        return spoken([*many, *factors[0]]) if all(one == factors[0] for one in factors) else ""

    @property
    def shares(self) -> list[tuple[str, int, str]]:
        """Of each architecture: its label, how many SAEs, and the product."""
        return [(share.label, share.count, spoken(share.factors)) for share in products(self.training)]

    @property
    def parameters(self) -> int | None:
        counted = [one["parameters"] for one in self.saes]
        return None if None in counted else sum(counted)

    @property
    def bytes(self) -> int | None:
        """In each process: of several each has all SAEs."""
        return None if self.parameters is None else STATE_BYTES * self.parameters

    @property
    def bytes_together(self) -> int | None:
        return None if self.bytes is None else self.bytes * self.training.processes

    @cached_property
    def free(self) -> list[Memory]:
        return memories()

    @property
    def too_large(self) -> bool:
        """For what this machine has free: each process needs a GPU of its own, or, where there are none, they share the
        memory."""
        if self.bytes is None:
            return False
        gpus = [memory for memory in self.free if memory.device != CPU]
        fit = sum(one.free >= self.bytes for one in gpus) if gpus else sum(one.free // self.bytes for one in self.free)
        return fit < self.training.processes


def spoken(factors: list[tuple[int, str]]) -> str:
    return " × ".join(f"{n} {noun}" for n, noun in factors)
