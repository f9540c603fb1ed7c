"""Whether a language model's weights fit into what this machine has free now."""

from dataclasses import dataclass

from jobs.devices import Memory
from mistudio.measurements import Observation, Spread, spread
from mistudio.models import LanguageModel
from mistudio.models.language_model import Precision
from mistudio.structure import weight_bytes

TIGHT = 0.8  # of what is free: beyond it, little is left for activations and for an SAE


@dataclass(frozen=True)
class Fit:
    device: str
    verdict: str  # "fits", "tight" or "no"


@dataclass(frozen=True)
class Need:
    dtype: str
    label: str
    estimate: int | None  # bytes of the weights
    measured: Spread | None
    fits: list[Fit]  # on each device, by what was measured if it was

    @property
    def somewhere(self) -> bool:
        return any(fit.verdict != "no" for fit in self.fits)


def needs(model: LanguageModel, seen: list[Observation], memories: list[Memory]) -> list[Need]:
    """For each precision, from the most exact to the smallest."""
    return [need(model, dtype, seen, memories) for dtype in Precision]


def need(model: LanguageModel, dtype: Precision, seen: list[Observation], memories: list[Memory]) -> Need:
    estimate = weight_bytes(model, dtype)
    measured = spread(one.weight_bytes for one in seen if one.dtype == dtype)
    size = measured.high if measured else estimate
    fits = [] if size is None else [Fit(memory.device, verdict(size, memory.free)) for memory in memories]
    return Need(dtype.value, dtype.label, estimate, measured, fits)


def verdict(size: float, free: int) -> str:
    return "no" if size > free else "tight" if size > TIGHT * free else "fits"


def advice(all_needs: list[Need]) -> str:
    """What to do where the most exact precision does not fit; "" where it does."""
    known = [need for need in all_needs if need.fits]
    if not known or any(fit.verdict == "fits" for fit in known[0].fits):
        return ""
    way_out = next(((need, fit) for need in known for fit in need.fits if fit.verdict == "fits"), None)
    if way_out is None:
        return "It fits in no precision. End what holds the memory, use a machine with more, or choose a smaller model."
    return f"In {known[0].label} it does not fit well; in {way_out[0].label} it fits on {way_out[1].device}."
