import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistudio.figures import Line, density_histogram, histogram, line_chart, lines_chart, sparkline
from mistudio.figures.axes import counts_axis, linear_axis, log_axis, span_axis, tick_label
from mistudio.figures.labels import at_ends
from mistudio.figures.series import ink, moving_average, thinned
from mistudio.figures.tradeoff import Dot, front, tradeoff_chart

NAN, INF = float("nan"), float("inf")
UGLY_SERIES = [
    [],
    [(0, 1)],
    [(0, NAN), (1, INF), (2, None)],
    [(0, 3), (1, 3), (2, 3)],
    [(0, 0), (1, 0)],
    [(5, 1), (5, 2)],
    [(0, 1e308), (1, -1e308)],
    [(0, 1e-310), (1, 5e-324)],
    [(0, 1e9), (1, 1e9 + 1e-4)],
    [(-4, 1), (4, NAN), (8, -2)],
    [("x", "y"), (None, 1)],
]


def parsed(svg):
    return ElementTree.fromstring(svg)


def numbers(svg):
    """Every coordinate of the drawing."""
    found = []
    for element in parsed(svg).iter():
        for name, value in element.attrib.items():
            if name in {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height", "d"}:
                found += [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", value)]
    return found


def title(svg):
    return parsed(svg).find("title").text


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"log": True},
        {"smooth": True},
        {"x_max": 0},
        {"x_max": NAN},
        {"y_min": 0, "y_max": 1},
        {"y_min": 5, "y_max": 5},
        {"reference": (3, "limit")},
    ],
    ids=str,
)
@pytest.mark.parametrize("points", UGLY_SERIES, ids=lambda points: str(points)[:30])
def test_no_series_breaks_a_chart(points, options):
    svg = line_chart(points, title="FVU", **options)
    assert "nan" not in svg and "inf" not in svg
    assert all(-50 <= n <= 420 for n in numbers(svg)), "a mark lies outside the figure"


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=60), st.booleans(), st.booleans())
def test_no_numbers_break_a_chart(points, log, smooth):
    svg = line_chart(points, title="t", log=log, smooth=smooth)
    assert all(-50 <= n <= 420 for n in numbers(svg)), "a mark lies outside the figure"


def test_nothing_measured_says_so():
    svg = line_chart([], title="Loss")
    assert "not measured yet" in svg and title(svg) == "Loss: not measured yet."


def test_a_chart_says_what_a_colleague_would_say():
    svg = line_chart([(0, 0.9), (1000, 0.25), (2000, 0.3)], title="FVU", unit="", x_label="tokens")
    assert title(svg) == "FVU: 0.300 at 2,000 tokens, from 0.250 to 0.900."


def test_the_unfinished_part_of_a_run_stays_empty():
    drawn = re.search(r'class="line one" d="([^"]+)"', line_chart([(0, 1), (50, 2)], title="t", x_max=100))[1]
    last_x = float(drawn.split()[-1].split(",")[0])
    assert last_x == pytest.approx((42 + 342) / 2, abs=1)


def test_a_spike_survives_thinning():
    points = [(float(i), 1.0) for i in range(10_000)]
    points[4321] = (4321.0, 99.0)
    kept = thinned(points)
    assert len(kept) <= 300 and (4321.0, 99.0) in kept
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_at_most_three_hundred_points_are_drawn_of_each_line():
    svg = line_chart([(i, math.sin(i / 9)) for i in range(5000)], title="t", smooth=True)
    for path in re.findall(r'class="line[^"]*" d="M([^"]+)"', svg):
        assert len(path.split()) <= 300


def test_smoothing_is_drawn_over_the_raw_line():
    svg = line_chart([(i, i % 2) for i in range(50)], title="t", smooth=True)
    assert svg.index("line raw one") < svg.index('"line one"')


def test_the_average_does_not_lag_behind_a_slope():
    line = [(float(x), 100.0 - x) for x in range(100)]
    assert [y for _, y in moving_average(line)] == pytest.approx([y for _, y in line])


def test_few_points_are_not_smoothed():
    assert "raw" not in line_chart([(i, 1 / (i + 1)) for i in range(8)], title="t", smooth=True)


def test_the_average_of_a_constant_is_that_constant():
    assert [y for _, y in moving_average([(0, 4.0), (1, 4.0), (2, 4.0)])] == pytest.approx([4.0, 4.0, 4.0])


def test_several_lines_have_their_own_ink_and_their_name_at_the_end():
    svg = lines_chart([Line([(0, 1), (1, 2)], "A"), Line([(0, 2), (1, 1)], "B & <C>")], title="t")
    assert 'class="line c1"' in svg and 'class="line c2"' in svg
    assert "B &amp; &lt;C&gt;" in svg and title(svg).startswith("t: A 2.00 at 1")


def test_words_in_a_figure_are_escaped():
    for svg in (
        line_chart([(0, 1), (1, 2)], title="<script>", unit="<b>", x_label="<i>", reference=(1, "<u>")),
        histogram([1], [0, 1], title="<script>", unit="<b>", x_label="<i>"),
        sparkline([1, 2], "<script>"),
    ):
        assert "<script" not in svg and "<b>" not in svg and "<i>" not in svg and "<u>" not in svg


def test_figures_have_no_inline_style_and_no_script():
    svgs = [
        line_chart([(0, 1), (1, 2)], title="t", smooth=True),
        histogram([1, 5], [0, 1, 2], title="t"),
        sparkline([1, 2], "t", running=True),
    ]
    for svg in svgs:
        assert "style=" not in svg and "<style" not in svg and "<script" not in svg and not re.search(r"\son\w+=", svg)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 1], ["0", "0.25", "0.50", "0.75", "1.00"]),
        ([0, 60], ["0", "20", "40", "60"]),
        ([0.2, 0.98], ["0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([0, 43_600], ["0", "20 k", "40 k", "60 k"]),
        ([-1, 1], ["−1.0", "−0.5", "0", "0.5", "1.0"]),
        ([1e-5, 3e-5], ["1e-5", "1.5e-5", "2e-5", "2.5e-5", "3e-5"]),
    ],
)
def test_ticks_are_round_and_as_precise_as_needed(values, labels):
    axis = linear_axis(values)
    assert [tick_label(tick, axis) for tick in axis.ticks] == labels


@given(st.lists(st.floats(-1e12, 1e12), min_size=1))
def test_an_axis_holds_its_values_with_two_to_seven_ticks(values):
    axis = linear_axis(values)
    slack = (axis.high - axis.low) * 1e-6
    assert axis.low - slack <= min(values) and max(values) <= axis.high + slack
    assert 2 <= len(axis.ticks) <= 7
    assert axis.low < axis.high


def test_a_log_axis_has_whole_decades():
    axis = log_axis([3e-4, 0.9])
    assert [tick_label(tick, axis) for tick in axis.ticks] == ["1e-4", "0.001", "0.01", "0.1", "1"]
    assert axis.share(0.01) == pytest.approx(0.5)


def test_a_long_log_axis_has_at_most_six_ticks():
    assert len(log_axis([1e-12, 1e6]).ticks) <= 6


def test_a_run_begins_at_zero_and_ends_at_its_end():
    axis = span_axis([100, 200], 503)
    assert (axis.low, axis.high, axis.ticks) == (0, 503, (0, 200, 400))
    assert span_axis([], None).high == 1.0


def test_a_bin_with_one_token_is_seen():
    axis = counts_axis(10_000)
    assert axis.share(1) > 0.02
    svg = histogram([1, 0, 10_000], [0, 1, 2, 3], title="t", activation=True)
    assert svg.count('class="bar act"') == 2 and "0 to 1.00: 1 tokens" in svg


@pytest.mark.parametrize(
    ("counts", "edges"),
    [
        ([], []),
        ([0, 0], [0, 1, 2]),
        ([1], [0]),
        ([1, 2], [NAN, 1, 2]),
        ([NAN, 1], [0, 1, 2]),
        ([1], [1, 1]),
        ([-3, 2], [0, 1, 2]),
        ([1e300], [0, 1]),
    ],
)
def test_no_counts_break_a_histogram(counts, edges):
    for log in (True, False):
        assert "nan" not in histogram(counts, edges, title="t", log=log)


@settings(deadline=None)
@given(st.lists(st.floats()), st.lists(st.floats()), st.booleans(), st.booleans())
def test_no_numbers_break_a_histogram(counts, edges, log, powers):
    svg = histogram(counts, edges, title="t", log=log, powers=powers and all(abs(e) < 300 for e in edges))
    assert all(-50 <= n <= 420 for n in numbers(svg)), "a mark lies outside the figure"


def test_the_axis_of_a_histogram_ends_where_its_last_bin_ends():
    svg = histogram([5, 5], [0, 11, 22.1], title="t")
    assert ">20</text>" in svg and ">30</text>" not in svg
    bars = [float(rect.get("x")) + float(rect.get("width")) for rect in parsed(svg).iter("rect")]
    assert max(bars) == pytest.approx(342, abs=2)


def test_a_stretched_histogram_gives_equal_ratios_equal_widths_with_round_ticks_between():
    svg = histogram([5, 5, 5], [1.0, 10.0, 100.0, 1000.0], title="t", stretch=True)
    widths = [float(rect.get("width")) for rect in parsed(svg).iter("rect")]
    assert widths == pytest.approx([widths[0]] * 3, abs=0.2)
    words = [text.text for text in parsed(svg).iter("text")]
    assert "100" in words or "50" in words
    assert title(svg) == "t: 15 tokens, from 1.00 to 1,000."


def test_a_histogram_says_how_many_it_counts():
    assert title(histogram([3, 4], [0, 1, 2], title="Activations")) == "Activations: 7 tokens, from 0 to 2.00."


def test_densities_are_counted_by_decades_and_dead_features_left_out():
    svg = density_histogram([0, 0, 1e-4, 1e-4, 0.5, NAN, None])
    assert title(svg) == "How often features fire: 3 features, from 1e-4 to 1.00."
    assert [text.text for text in parsed(svg).iter("text") if "in" in text.text] == ["1 in 10 k", "1 in 100"]
    assert "not measured yet" in density_histogram([0, 0])


def test_a_sparkline_has_a_dot_only_while_it_goes_on():
    assert "now" in sparkline([1, 2, 3], "t", running=True)
    assert 'class="now"' not in sparkline([1, 2, 3], "t")
    assert sparkline([], "t") == sparkline([None, NAN], "t") == "–"
    assert len(re.search(r'd="M([^"]+)"', sparkline(range(1000), "t"))[1].split()) <= 60


def test_lines_that_end_at_one_height_share_a_name_and_others_keep_apart():
    ends = [("1", (0.0, 50.0)), ("2", (0.0, 50.2)), ("3", (0.0, 54.0)), ("4", (0.0, 120.0))]
    words = [ElementTree.fromstring(part) for part in at_ends(ends, 14, 120)]
    assert [word.text for word in words] == ["1 +1", "3", "4"]
    heights = [float(word.get("y")) for word in words]
    assert all(below - above >= 10 for above, below in pairwise(heights)) and heights[-1] <= 123.5


@pytest.mark.parametrize("n", [1, 2, 40, 64])
def test_the_names_of_many_lines_stay_within_the_figure(n):
    svg = lines_chart([Line([(0, 1), (1, i)], str(i + 1)) for i in range(n)], title="t", height=240)
    heights = [float(text.get("y")) for text in parsed(svg).iter("text") if "strong" in text.get("class", "")]
    assert len(heights) == (0 if n == 1 else min(n, 21)) and all(0 < y <= 240 for y in heights)


def test_each_second_round_of_colours_is_told_apart_without_them():
    assert [ink(n) for n in (0, 7, 8, 15, 16)] == ["c1", "c8", "c1 broad", "c8 broad", "c1"]


def test_the_line_of_a_tradeoff_leads_through_those_that_none_beats():
    dots = [Dot(str(i + 1), i, cost, gain) for i, (cost, gain) in enumerate([(8, 0.5), (16, 0.4), (32, 0.9), (8, 0.3)])]
    assert [dot.name for dot in front(dots)] == ["1", "3"]
    svg = tradeoff_chart(dots, title="t", cost="L0", gain="EV")
    assert title(svg) == "t: of 4, none beats 1 with 0.500 at 8.00, 3 with 0.900 at 32.0."
    assert len(list(parsed(svg).iter("circle"))) == 4
    assert {"1", "2", "3", "4"} <= {text.text for text in parsed(svg).iter("text")}


@pytest.mark.parametrize(
    "dots", [[], [Dot("1", 0, 0.0, 0.5)], [Dot("1", 0, float("nan"), 0.5)], [Dot("1", 0, 4, 0.5)] * 3]
)
def test_no_tradeoff_breaks_the_figure(dots):
    assert parsed(tradeoff_chart(dots, title="t", cost="L0", gain="EV")) is not None


def test_an_axis_may_begin_before_what_was_measured():
    first, last = (numbers(line_chart([(-10, 1), (0, 2)], title="t", x_min=start)) for start in (-10, -40))
    path = re.search(r'class="line one" d="M([\d.]+),', line_chart([(-10, 1), (0, 2)], title="t", x_min=-40))
    assert first != last and 200 < float(path[1]) < 300, "the last quarter of the axis"


def test_a_line_is_broken_where_nothing_was_measured():
    points = [(x, 1 + x % 3) for x in [*range(10), *range(50, 60), 90]]
    figure = line_chart(points, title="t", gap=3)
    assert figure.count('class="line one"') == 2 and figure.count('class="dot one"') == 1
    assert line_chart(points, title="t").count('class="line one"') == 1
