"""Names beside lines and dots: moved apart where they would cover each other, and left out where there is no room."""

from collections.abc import Sequence

from django.utils.safestring import SafeString

from mistudio.figures.canvas import mark
from mistudio.figures.series import Point

ROW = 10.0  # units from one line of text to the next
LETTER = 6.0  # units that a digit is wide
AROUND = ((5.0, 3.5, ""), (0.0, -6.0, "mid"), (-5.0, 3.5, "end"), (0.0, 13.0, "mid"), (5.0, -6.0, ""), (5.0, 13.0, ""))


def at_ends(named: Sequence[tuple[str, Point]], top: float, bottom: float) -> list[SafeString]:
    """Behind the ends of lines, one below the other: "3 +2" is line 3 and two that end where it does. Of too many an
    even choice is written."""
    ranked = merged(sorted(named, key=lambda one: one[1][1]))
    room = max(1, int((bottom - top) / ROW) + 1)
    if len(ranked) > room:
        ranked = [ranked[round(i * (len(ranked) - 1) / max(1, room - 1))] for i in range(room)]
    heights = [y for _, (_, y) in ranked]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + ROW)
    limit = bottom
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], limit)
        limit = heights[i] - ROW
    return [mark("text", "strong", name, x=x + 4, y=y + 3.5) for (name, (x, _)), y in zip(ranked, heights, strict=True)]


def merged(ranked: list[tuple[str, Point]]) -> list[tuple[str, Point]]:
    """Those at one height under the name of the first."""
    groups: list[list[tuple[str, Point]]] = []
    for one in ranked:
        if groups and one[1][1] - groups[-1][0][1][1] < 1 and one[1][0] == groups[-1][0][1][0]:
            groups[-1].append(one)
        else:
            groups.append([one])
    return [(f"{g[0][0]} +{len(g) - 1}" if len(g) > 1 else g[0][0], g[0][1]) for g in groups]


def beside(named: Sequence[tuple[str, Point]]) -> list[SafeString]:
    """At dots, on a side of each where nothing is written yet and no dot lies."""
    taken = [(x - 4, y - 4, x + 4, y + 4) for _, (x, y) in named]
    written = []
    for name, (x, y) in named:
        for dx, dy, anchor in AROUND:
            wide = LETTER * len(name)
            left = x + dx - (wide if anchor == "end" else wide / 2 if anchor else 0)
            box = (left, y + dy - 9, left + wide, y + dy)
            if not any(cover(box, other) for other in taken):
                taken.append(box)
                written.append(mark("text", f"strong {anchor}".strip(), name, x=x + dx, y=y + dy))
                break
    return written


def cover(one: tuple[float, float, float, float], two: tuple[float, float, float, float]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
