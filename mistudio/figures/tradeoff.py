"""What is gained against what it costs: a dot for each, and a line through those that none other beats."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.utils.safestring import SafeString

from mistudio.figures.axes import linear_axis, span_axis, stretch_axis
from mistudio.figures.canvas import LEFT, Plot, drawing, empty_chart, mark, polyline
from mistudio.figures.labels import beside
from mistudio.figures.series import Point, drawable, ink
from mistudio.formats import significant

SPREAD = 3.0  # from here on, costs stand by their logarithm


@dataclass(frozen=True)
class Dot:
    name: str
    number: int  # decides its colour
    cost: float
    gain: float


def front(dots: Sequence[Dot]) -> list[Dot]:
    """Those that none other beats, the cheapest first: whatever costs no more gains less."""
    best: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.cost, -dot.gain)):
        if not best or dot.gain > best[-1].gain:
            best.append(dot)
    return best


def tradeoff_chart(
    dots: Sequence[Dot],
    *,
    title: str,
    cost: str,
    gain: str,
    joined: bool = True,
    width: int = 360,
    height: int = 240,
) -> SafeString:
    """`cost` and `gain` name the axes; costs are above 0. joined: draw the line; else they are not compared."""
    known = [dot for dot in dots if (drawable(dot.cost) or 0) > 0 and drawable(dot.gain) is not None]
    if not known:
        return empty_chart(title, width, height)
    costs, best = [dot.cost for dot in known], front(known)
    low, high = min(costs), max(costs)
    x = stretch_axis(low / 1.2, high * 1.2) if high > SPREAD * low else span_axis(costs, 1.1 * high)
    plot = Plot(width, height, x, linear_axis([dot.gain for dot in known]))
    places: dict[int, Point] = {dot.number: plot.at((dot.cost, dot.gain)) for dot in known}
    parts = [plot.frame(), mark("text", "", gain, x=LEFT, y=9)]
    parts.append(mark("text", "end", cost, x=plot.right, y=plot.bottom - 5))
    if joined and len(best) > 1:
        parts.append(polyline([places[dot.number] for dot in best], "one"))
    parts += [mark("circle", f"dot {ink(n)}", cx=place[0], cy=place[1], r=4) for n, place in places.items()]
    parts += beside([(dot.name, places[dot.number]) for dot in known])
    said = ", ".join(f"{dot.name} with {significant(dot.gain)} at {significant(dot.cost)}" for dot in best)
    beaten = f": of {len(known)}, none beats {said}." if joined else f" of {len(known)}."
    return drawing(f"{title}{beaten}", width, height, parts)
