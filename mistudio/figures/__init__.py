"""Figures as SVG, drawn by the server: geometry as attributes, ink by the classes of components.css.

Numbers in, markup out. What is not finite is left out; no figure fails on what was measured."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from django.utils.safestring import SafeString, mark_safe

from mistudio.figures.axes import (
    counts_axis,
    decades_axis,
    exact_axis,
    linear_axis,
    log_axis,
    short,
    span_axis,
    stretch_axis,
)
from mistudio.figures.canvas import TOP, Plot, drawing, empty_chart, mark, polyline
from mistudio.figures.labels import at_ends
from mistudio.figures.series import MOST_POINTS, Point, drawable, finite, ink, moving_average, thinned, unbroken
from mistudio.formats import NONE, significant, thousands

MOST_SAID = 8  # lines whose values are spoken one by one

__all__ = ["Line", "density_histogram", "histogram", "line_chart", "lines_chart", "sparkline"]


@dataclass(frozen=True)
class Line:
    """One series of several; its name stands at its end."""

    points: Sequence[Sequence[Any]]
    name: str = ""


def line_chart(points: Sequence[Sequence[Any]], *, title: str, **options: Any) -> SafeString:
    """One series; see `lines_chart` for the options."""
    return lines_chart([Line(points)], title=title, **options)


def lines_chart(
    lines: Sequence[Line],
    *,
    title: str,
    unit: str = "",
    x_label: str = "",
    x_min: float | None = None,
    x_max: float | None = None,
    gap: float = math.inf,
    y_min: float | None = None,
    y_max: float | None = None,
    log: bool = False,
    smooth: bool = False,
    reference: tuple[float, str] | None = None,
    width: int = 360,
    height: int = 140,
) -> SafeString:
    """Lines over a common x axis. `x_max` is where the run will end: what is not measured stays empty, from `x_min` on.

    A line is broken where its points are more than `gap` apart. `smooth` draws each line pale, with its moving average
    over it. `reference` is a limit and its word."""
    series = [[point for point in finite(line.points) if point[1] > 0 or not log] for line in lines]
    if not any(series):
        return empty_chart(title, width, height)
    heights = [y for points in series for _, y in points] + ([reference[0]] if reference else [])
    span = span_axis([x for points in series for x, _ in points], drawable(x_max), drawable(x_min))
    plot = Plot(width, height, span, log_axis(heights) if log else linear_axis(heights, y_min, y_max))
    parts = [plot.frame(x_label, unit), *(plot.reference(*reference) if reference else [])]
    most = max(60, min(MOST_POINTS, 4 * MOST_POINTS // len(lines)))
    for index, points in enumerate(series):
        for stretch in unbroken(points, gap):
            share = max(2, most * len(stretch) // len(points))
            parts += drawn(plot, stretch, "one" if len(lines) == 1 else ink(index), smooth, share)
    if len(lines) > 1:
        ends = [(line.name, plot.at(points[-1])) for line, points in zip(lines, series, strict=True) if points]
        parts += at_ends(ends, TOP, plot.bottom)
    return drawing(sentence(title, lines, series, unit, x_label), width, height, parts)


def drawn(plot: Plot, points: Sequence[Point], ink: str, smooth: bool, most: int) -> list[SafeString]:
    if not points:
        return []
    raw = [plot.at(point) for point in thinned(points, most)]
    if not smooth or len(points) < 20:
        return [polyline(raw, ink)]
    average = [plot.at(point) for point in thinned(moving_average(points), most)]
    return [polyline(raw, f"raw {ink}"), polyline(average, ink)]


def sentence(title: str, lines: Sequence[Line], series: Sequence[Sequence[Point]], unit: str, x_label: str) -> str:
    """What a colleague would say on the phone: of each line, or of many together."""
    said = []
    if len(lines) > MOST_SAID:
        ends = [points[-1][1] for points in series if points]
        between = f"from {significant(min(ends))} to {significant(max(ends))} {unit}".strip()
        return f"{title}: {len(ends)} lines, now {between}."
    for line, points in zip(lines, series, strict=True):
        if points:
            values = [y for _, y in points]
            newest = f"{line.name} {significant(values[-1])} {unit}".strip()
            at = f"at {short(points[-1][0])} {x_label}".strip()
            said.append(f"{newest} {at}, from {significant(min(values))} to {significant(max(values))}")
    return f"{title}: {'; '.join(said)}."


def sparkline(values: Iterable[Any], title: str, *, running: bool = False) -> SafeString:
    """The shape of a series in 72 × 20, without axes. A dot at its end says that it goes on."""
    known = thinned(finite(enumerate(values)), 60)
    if not known:
        return mark_safe(NONE)
    low, high = min(y for _, y in known), max(y for _, y in known)
    last = max(known[-1][0], 1.0)
    level = [0.5 if high == low else (y - low) / (high - low) for _, y in known]
    points = [(1 + 67 * x / last, 17 - 14 * share) for (x, _), share in zip(known, level, strict=True)]
    parts = [polyline(points, "")]
    if running:
        parts.append(mark("circle", "now", cx=points[-1][0], cy=points[-1][1], r=2))
    return drawing(title, 72, 20, parts, kind="spark")


def histogram(
    counts: Sequence[Any],
    edges: Sequence[Any],
    *,
    title: str,
    unit: str = "tokens",
    x_label: str = "",
    log: bool = True,
    activation: bool = False,
    powers: bool = False,
    stretch: bool = False,
    width: int = 360,
    height: int = 140,
) -> SafeString:
    """Bars of counts between edges, of which there is one more. On a log scale an empty bin has no bar.

    `activation`: in amber, for what the model did. `powers`: the edges are log10 of what is meant.
    `stretch`: the edges, all above 0, stand by their logarithm."""
    rows = zip(edges[:-1], edges[1:], counts, strict=False)
    known = [(drawable(low), drawable(high), drawable(count) or 0.0) for low, high, count in rows]
    bins = [(low, high, count) for low, high, count in known if low is not None and high is not None and high > low]
    most = max((count for *_, count in bins), default=0.0)
    if most <= 0:
        return empty_chart(title, width, height)
    first, last = min(low for low, *_ in bins), max(high for _, high, _ in bins)
    x_axis = (decades_axis if powers else stretch_axis if stretch else exact_axis)(first, last)
    plot = Plot(width, height, x_axis, counts_axis(most) if log else linear_axis([max(4.0, most)], 0.0))
    ink = "bar act" if activation else "bar one"
    bars = [
        plot.bar(low, high, count, ink, bin_words(low, high, count, unit, powers))
        for low, high, count in bins
        if count > 0
    ]
    total = thousands(round(sum(count for *_, count in bins)))
    said = f"{title}: {total} {unit}, from {edge(first, powers)} to {edge(last, powers)}."
    return drawing(said, width, height, [plot.frame(x_label, unit, powers), *bars])


def edge(value: float, powers: bool) -> str:
    return significant(10.0**value if powers else value)


def bin_words(low: float, high: float, count: float, unit: str, powers: bool) -> str:
    return f"{edge(low, powers)} to {edge(high, powers)}: {thousands(round(count))} {unit}".strip()


def density_histogram(
    densities: Iterable[Any], *, title: str = "How often features fire", bins: int = 40
) -> SafeString:
    """How many features fire how often, by decades of the share of tokens. Dead ones have no place on it."""
    known = densities if isinstance(densities, np.ndarray) else np.array([drawable(d) or 0.0 for d in densities])
    fired = known[known > 0]
    if not len(fired):
        return empty_chart(title, 360, 140)
    logs = np.log10(np.minimum(fired, 1.0))
    counts, edges = np.histogram(logs, bins=bins, range=(min(-1.0, math.floor(logs.min())), 0.0))
    return histogram(counts.tolist(), edges.tolist(), title=title, unit="features", log=False, powers=True)
