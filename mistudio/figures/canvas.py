"""SVG elements, and the plot area that turns values into coordinates."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.utils.html import conditional_escape, format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from mistudio.figures.axes import Axis, short, tick_label
from mistudio.figures.series import Point

LEFT, TOP, RIGHT, FOOT = 42, 14, 18, 20  # room for units and the labels of the axes


def shown(value: float | str) -> str:
    """A coordinate, to a tenth of a unit."""
    if isinstance(value, str):
        return value
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def mark(tag: str, ink: str = "", text: str = "", **geometry: float | str) -> SafeString:
    """One SVG element: ink by class, geometry by attributes, everything escaped."""
    attributes = format_html_join("", ' {}="{}"', ((name, shown(value)) for name, value in geometry.items()))
    start = format_html('<{} class="{}"{}', mark_safe(tag), ink, attributes)
    return format_html("{}>{}</{}>", start, text, mark_safe(tag)) if text else format_html("{}/>", start)


def joined(parts: Iterable[SafeString]) -> SafeString:
    return mark_safe("".join(conditional_escape(part) for part in parts))


def polyline(points: Sequence[Point], ink: str) -> SafeString:
    """A lone point is a dot: a line of no length would not be seen."""
    if len(points) == 1:
        return mark("circle", f"dot {ink}", cx=points[0][0], cy=points[0][1], r=2)
    return mark("path", f"line {ink}".strip(), d="M" + " ".join(f"{shown(x)},{shown(y)}" for x, y in points))


def drawing(sentence: str, width: int, height: int, parts: Iterable[SafeString], kind: str = "chart") -> SafeString:
    """The whole image. Its name is the sentence one would say on the phone."""
    return format_html(
        '<svg class="{}" viewBox="0 0 {} {}" role="img"><title>{}</title>{}</svg>',
        f"{kind} big" if width > 500 else kind,
        width,
        height,
        sentence,
        joined(parts),
    )


def empty_chart(title: str, width: int, height: int) -> SafeString:
    bottom = height - FOOT
    axis = mark("line", "axis", x1=LEFT, x2=width - RIGHT, y1=bottom, y2=bottom)
    words = mark("text", "mid", "not measured yet", x=width / 2, y=height / 2)
    return drawing(f"{title}: not measured yet.", width, height, [axis, words])


@dataclass(frozen=True)
class Plot:
    """The area between the axes."""

    width: int
    height: int
    x: Axis
    y: Axis

    @property
    def right(self) -> float:
        return self.width - RIGHT

    @property
    def bottom(self) -> float:
        return self.height - FOOT

    def across(self, x: float) -> float:
        return LEFT + self.x.share(x) * (self.right - LEFT)

    def up(self, y: float) -> float:
        return self.bottom - self.y.share(y) * (self.bottom - TOP)

    def at(self, point: Point) -> Point:
        return self.across(point[0]), self.up(point[1])

    def frame(self, x_unit: str = "", y_unit: str = "", powers: bool = False) -> SafeString:
        """Grid, axis and labels. `powers`: the x values are log10 of what is meant."""
        parts = [part for tick in self.y.ticks for part in self.y_tick(tick)]
        parts.append(mark("line", "axis", x1=LEFT, x2=self.right, y1=self.bottom, y2=self.bottom))
        for index, tick in enumerate(self.x.ticks):
            label = power(tick, self.x.high <= 0) if powers else short(tick)
            label += f" {x_unit}" if x_unit and index == 0 and not powers else ""
            share = self.x.share(tick)
            anchor = "end" if share > 0.95 else "mid" if share > 0.05 else ""
            parts.append(mark("text", anchor, label, x=self.across(tick), y=self.bottom + 15))
        if y_unit:
            parts.append(mark("text", "", y_unit, x=LEFT, y=9))
        return joined(parts)

    def y_tick(self, tick: float) -> list[SafeString]:
        y = self.up(tick)
        return [
            mark("line", "grid", x1=LEFT, x2=self.right, y1=y, y2=y),
            mark("text", "end", tick_label(tick, self.y), x=LEFT - 5, y=y + 3.5),
        ]

    def reference(self, value: float, word: str) -> list[SafeString]:
        y = self.up(value)
        return [
            mark("line", "ref", x1=LEFT, x2=self.right, y1=y, y2=y),
            mark("text", "end", word, x=self.right - 3, y=y - 4),
        ]

    def bar(self, low: float, high: float, count: float, ink: str, words: str) -> SafeString:
        left, right, top = self.across(low), self.across(high), self.up(count)
        gap = min(1.0, (right - left) * 0.2)
        size = {
            "x": left,
            "y": top,
            "width": max(0.6, right - left - gap),
            "height": max(0.6, self.bottom - top),
        }
        attributes = format_html_join("", ' {}="{}"', ((name, shown(value)) for name, value in size.items()))
        return format_html('<rect class="{}"{}><title>{}</title></rect>', ink, attributes, words)


def power(exponent: float, share: bool) -> str:
    """0.001 as people compare rates: 1 in 1,000. Of a share, 1 is all."""
    return (
        "all"
        if share and exponent == 0
        else f"1 in {short(10.0**-exponent)}"
        if exponent < 0
        else short(10.0**exponent)
    )
