"""Series of points: what cannot be drawn is left out, and never more is drawn than can be seen."""

from collections.abc import Iterable, Sequence
from typing import Any

from mistudio.figures.axes import LARGEST, SMALLEST
from mistudio.formats import number

Point = tuple[float, float]
MOST_POINTS = 300  # per line; a small figure has not many more pixels


INKS = 8


def ink(number: int) -> str:
    """Classes of a line by its number from 0. Each second round of the colours is broad and pale."""
    return f"c{number % INKS + 1}" + (" broad" if number // INKS % 2 else "")


def drawable(value: Any) -> float | None:
    known = number(value)
    if known is None or abs(known) > LARGEST:
        return None
    return known if abs(known) > SMALLEST else 0.0


def finite(points: Iterable[Sequence[Any]]) -> list[Point]:
    pairs = ((drawable(x), drawable(y)) for x, y in points)
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points. Of each stretch the lowest and the highest stay, so that a spike is not lost."""
    if len(points) <= most:
        return list(points)
    inner, stretches = points[1:-1], (most - 2) // 2
    kept = [points[0]]
    for i in range(stretches):
        stretch = inner[i * len(inner) // stretches : (i + 1) * len(inner) // stretches]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return [*kept, points[-1]]


def unbroken(points: Sequence[Point], gap: float) -> list[list[Point]]:
    """Stretches in which each point is at most `gap` after the one before."""
    stretches: list[list[Point]] = []
    for point in points:
        if stretches and point[0] - stretches[-1][-1][0] <= gap:
            stretches[-1].append(point)
        else:
            stretches.append([point])
    return stretches


def moving_average(points: Sequence[Point]) -> list[Point]:
    """Over a window that is symmetric at every point, so that it does not lag behind a falling curve."""
    last, half = len(points) - 1, max(1, len(points) // 40)
    smooth = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, last - i)
        near = points[i - reach : i + reach + 1]
        smooth.append((x, sum(y for _, y in near) / len(near)))
    return smooth
