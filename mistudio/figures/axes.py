"""Axes: which range, which ticks, and where on the axis a value stands."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mistudio.formats import fixed, sci, si, significant

LARGEST, SMALLEST = 1e150, 1e-150  # beyond these, differences and powers leave the floats


@dataclass(frozen=True)
class Axis:
    low: float
    high: float
    log: bool = False
    ticks: Sequence[float] = ()

    def share(self, value: float) -> float:
        """Where on the axis, 0 to 1; what lies beyond an end is put on it."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        return min(1.0, max(0.0, (at - low) / (high - low)))


def nice_step(span: float, about: int = 4) -> float:
    """1, 2, 2.5 or 5 times a power of ten, so that about `about` steps fill the span."""
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * 0.999)


def linear_axis(values: Iterable[float], low: float | None = None, high: float | None = None) -> Axis:
    """An axis that holds the values, with four to six round ticks. `low` and `high` widen it."""
    known = [*values, *(end for end in (low, high) if end is not None)] or [0.0, 1.0]
    bottom, top = min(known), max(known)
    if top - bottom <= 1e-9 * max(abs(top), abs(bottom), SMALLEST):
        margin = abs(top) * 0.1 or 1.0
        bottom, top = (bottom if bottom == low else bottom - margin), top + margin
    step = nice_step(top - bottom)
    first, last = math.floor(bottom / step + 1e-9), math.ceil(top / step - 1e-9)
    ticks = tuple(step * i for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks=ticks)


def log_axis(values: Iterable[float]) -> Axis:
    """Whole decades that hold the positive values, six ticks at most."""
    known = [value for value in values if value > 0] or [0.1, 1.0]
    first, last = math.floor(math.log10(min(known)) + 1e-9), math.ceil(math.log10(max(known)) - 1e-9)
    last = max(last, first + 1)
    every = -(-(last - first) // 5)
    ticks = tuple(10.0**exponent for exponent in range(first, last + 1, every))
    return Axis(10.0**first, 10.0**last, log=True, ticks=ticks)


def span_axis(values: Sequence[float], end: float | None = None, start: float | None = None) -> Axis:
    """From 0, or the start, to the end of the run, or to the newest value."""
    first, last = min([0.0, start or 0.0, *values]), max([0.0, end or 0.0, *values])
    return exact_axis(first, last if last > first else first + 1.0)


def counts_axis(most: float) -> Axis:
    """Counts by decades, begun below 1, so that a bin with a single token still has a bar."""
    top = max(1, math.ceil(math.log10(most) - 1e-9))
    every = -(-top // 4)
    ticks = tuple(10.0**exponent for exponent in range(0, top + 1, every))
    return Axis(0.5, 10.0**top, log=True, ticks=ticks)


def exact_axis(low: float, high: float) -> Axis:
    """From the one value to the other, with round ticks in between."""
    step = nice_step(high - low)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, ticks=tuple(step * i for i in range(first, last + 1)))


def stretch_axis(low: float, high: float) -> Axis:
    """From the one positive value to the other by their logarithm, with ticks at 1, 2 and 5 times powers of ten; evenly
    spaced ones where these are too few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    places = [step * 10.0**exponent for exponent in range(first, last + 1) for step in (1, 2, 5)]
    ticks = [place for place in places if low <= place <= high]
    if len(ticks) < 3:
        return replace(exact_axis(low, high), log=True)
    return Axis(low, high, log=True, ticks=tuple(ticks[:: max(1, -(-len(ticks) // 8))]))


def decades_axis(low: float, high: float) -> Axis:
    """An axis of log10 values, with ticks at whole decades."""
    every = max(1, -(-math.floor(high - low) // 3))  # "1 in 100 k" is a long label
    return Axis(low, high, ticks=tuple(float(e) for e in range(math.ceil(low), math.floor(high) + 1, every)))


def short(value: float) -> str:
    """A number for a tick: 0.5, 1,250, 125 M."""
    if abs(value) >= 10_000:
        return lettered(value)
    text = significant(value, 3)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def lettered(value: float) -> str:
    return si(value).replace(".00 ", " ").replace(".0 ", " ")


def places(step: float) -> int:
    """Decimals that tell the ticks of a nice step apart: 0.2 needs one, 0.25 two."""
    exponent = math.floor(math.log10(step) + 1e-9)
    two_digits = abs(step / 10.0**exponent - 2.5) < 0.01
    return max(0, -exponent + two_digits)


def tick_label(value: float, axis: Axis) -> str:
    if axis.log:
        return sci(value) if value < 1e-3 else f"{value:g}" if value < 1000 else lettered(value)
    if abs(value) < (axis.high - axis.low) * 1e-9:
        return "0"
    step = axis.ticks[1] - axis.ticks[0] if len(axis.ticks) > 1 else abs(value)
    if abs(value) >= 10_000 and step >= 10:
        return short(value)
    return sci(value) if step < 5e-4 else fixed(value, places(step))
