"""How long documents are, in ranges that double. Each bar may lead to its documents."""

from collections.abc import Callable, Mapping

from django.utils.html import format_html
from django.utils.safestring import SafeString

from mistudio.figures.axes import Axis, linear_axis
from mistudio.figures.canvas import LEFT, TOP, Plot, empty_chart, joined, mark
from mistudio.formats import thousands

WIDTH, HEIGHT = 360, 140


def length_histogram(
    ranges: Mapping[str, int],
    *,
    title: str,
    unit: str = "characters",
    address: Callable[[int, int], str] | None = None,
    chosen: tuple[int, int] | None = None,
) -> SafeString:
    """`ranges`: {"64–127": documents, …} as `DocumentStatistics` names them, in any order."""
    bins = sorted((*bounds(label), count) for label, count in ranges.items())
    if not bins:
        return empty_chart(title, WIDTH, HEIGHT)
    first, last = step(bins[0][0]), step(bins[-1][0]) + 1
    every = -(-(last - first) // 6)
    ticks = tuple(float(power) for power in range(first, last + 1, every))
    plot = Plot(WIDTH, HEIGHT, Axis(first, last, ticks=ticks), linear_axis([max(4.0, *(n for *_, n in bins))], 0.0))
    axis = mark("line", "axis", x1=LEFT, x2=plot.right, y1=plot.bottom, y2=plot.bottom)
    labels = [
        mark("text", "end" if power == last else "mid", thousands(2**power), x=plot.across(power), y=plot.bottom + 15)
        for power in ticks
    ]
    grid = [part for tick in plot.y.ticks for part in plot.y_tick(tick)]
    what = mark("text", "", f"documents, by {unit}", x=LEFT, y=9)
    bars = []
    for low, high, count in bins:
        said = f"{thousands(low)} to {thousands(high)} {unit}: {thousands(count)} documents"
        ink = "bar" if chosen == (low, high) else "bar one"
        shape = plot.bar(step(low), step(low) + 1, count, ink, said)
        bars.append(linked(plot, low, shape, said, address(low, high), chosen == (low, high)) if address else shape)
    return format_html(
        '<svg class="chart" viewBox="0 0 {} {}" role="{}" aria-label="{}">{}</svg>',
        WIDTH,
        HEIGHT,
        "group" if address else "img",
        title,
        joined([*grid, axis, *labels, what, *bars]),
    )


def bounds(label: str) -> tuple[int, int]:
    """Of a range as it is named: "64–127", or "1"."""
    low, _, high = label.partition("–")
    return int(low), int(high or low)


def step(low: int) -> int:
    return low.bit_length() - 1


def linked(plot: Plot, low: int, shape: SafeString, said: str, address: str, chosen: bool) -> SafeString:
    left, right = plot.across(step(low)), plot.across(step(low) + 1)
    ground = mark(
        "rect", "hit", x=left, y=TOP, width=right - left, height=plot.bottom - TOP
    )  # low bars can be met, too
    current = format_html(' aria-current="true"') if chosen else ""
    return format_html('<a href="{}" aria-label="{}"{}>{}{}</a>', address, said, current, ground, shape)
