from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.template import Context, Template
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from mistudio.templatetags import ui

NAN, INF = float("nan"), float("inf")
UGLY = [None, "", "text", NAN, INF, -INF, [], {}, object()]
NUMBERS = [ui.thousands, ui.fixed, ui.significant, ui.si, ui.binary, ui.percent, ui.hundredths, ui.one_in]


def rendered(source, **context):
    return Template(source).render(Context(context))


@pytest.mark.parametrize("write", [*NUMBERS, ui.sci, ui.duration])
@pytest.mark.parametrize("value", UGLY, ids=lambda value: "object" if type(value) is object else repr(value))
def test_what_is_no_finite_number_is_shown_as_a_dash(write, value):
    assert write(value) == "–"


@pytest.mark.parametrize("write", [*NUMBERS, ui.sci, ui.duration])
@given(value=st.one_of(st.floats(), st.integers()))
def test_no_number_breaks_a_format(write, value):
    text = write(value)
    assert text and "nan" not in text and "inf" not in text and "--" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1,000"),
        (65_536, "65,536"),
        (-1234, "−1,234"),
        (2**63, "9,223,372,036,854,775,808"),
        (1234.6, "1,235"),
    ],
)
def test_thousands_have_commas(value, text):
    assert ui.thousands(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (999.9, "1.00 k"),
        (43_612, "43.6 k"),
        (312_000_000, "312 M"),
        (9.62e9, "9.62 B"),
        (999_999, "1.00 M"),
        (0.0123, "0.0123"),
        (-1500, "−1.50 k"),
    ],
)
def test_large_numbers_keep_three_digits_and_a_letter(value, text):
    assert ui.si(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (110_809_000_000, "103.2 GiB"),
        (-2048, "−2.0 KiB"),
        (1024**6, "1,024.0 PiB"),
    ],
)
def test_bytes_are_binary_units(value, text):
    assert ui.binary(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0 %"), (1, "100.0 %"), (0.079, "7.9 %"), (0.00001, "< 0.1 %"), (0.99999, "> 99.9 %"), (1.5, "150.0 %")],
)
def test_a_share_is_never_rounded_to_none_or_all(value, text):
    assert ui.percent(value) == text


def test_progress_reaches_a_hundred_only_at_the_end():
    assert ui.hundredths(99.99) == "> 99.9 %"
    assert ui.hundredths(100) == "100.0 %"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "never"), (1 / 612, "1 in 612"), (1e-6, "1 in 1,000,000"), (0.1, "1 in 10"), (0.25, "25.0 %"), (1, "100.0 %")],
)
def test_a_rate_is_one_in_so_many(value, text):
    assert ui.one_in(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3e-4, "3e-4"),
        (2.5e-5, "2.5e-5"),
        (1, "1"),
        (0, "0"),
        (5, "5"),
        (0.02, "0.02"),
        (1e6, "1e6"),
        (0.001234567, "1.23e-3"),
        (-3e-4, "-3e-4"),
    ],
)
def test_learning_rates_are_short(value, text):
    assert ui.sci(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.42, "0.4 s"),
        (41, "41 s"),
        (59.96, "1 min 00 s"),
        (128, "2 min 08 s"),
        (4320, "1 h 12 min"),
        (273_600, "3 d 4 h"),
        (-5, "0.0 s"),
        (timedelta(hours=2), "2 h 00 min"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert ui.duration(seconds) == text


def test_a_unit_is_set_apart_from_its_number():
    assert ui.units("103.2 GiB") == '103.2<span class="unit">GiB</span>'
    assert ui.units("7.9 %") == '7.9<span class="unit">%</span>'
    assert ui.units("–") == "–"
    assert ui.units("65,536") == "65,536"
    assert ui.units("<b>1</b> x") == '&lt;b&gt;1&lt;/b&gt;<span class="unit">x</span>'


def test_what_was_not_measured_says_so():
    assert ui.measured(None) == "not measured"
    assert ui.measured(0) == 0
    assert ui.known(None) == "–"
    assert ui.known(0) == 0


def test_a_moment_is_relative_to_read_and_absolute_in_its_title():
    two_hours_ago = timezone.now() - timedelta(hours=2, minutes=1)
    html = ui.ago(two_hours_ago)
    assert ">2 h ago</time>" in html
    assert f'title="{two_hours_ago:%Y-%m-%d %H:%M:%S} UTC"' in html


@pytest.mark.parametrize("value", [None, "", "yesterday", 5])
def test_a_missing_moment_is_a_dash(value):
    assert ui.ago(value) == ui.clock(value) == ui.since(value) == "–"


def test_a_clock_that_runs_ahead_is_just_now():
    assert "just now" in ui.ago(timezone.now() + timedelta(minutes=5))


def test_another_day_is_named():
    then = timezone.now() - timedelta(days=3)
    assert f"{then.day} {then:%b}" in ui.clock(then)


@pytest.mark.parametrize(
    ("value", "largest", "step"),
    [
        (0, 10, ""),
        (-1, 10, ""),
        (0.01, 10, "heat-0"),
        (1, 10, "heat-1"),
        (9.99, 10, "heat-9"),
        (10, 10, "heat-9"),
        (50, 10, "heat-9"),
        (1, 0, ""),
        (None, 10, ""),
        (NAN, 10, ""),
        (1, INF, ""),
    ],
)
def test_heat_has_ten_steps_and_none_at_zero(value, largest, step):
    assert ui.heat(value, largest) == step


@pytest.mark.parametrize(
    ("text", "html"),
    [
        (" told", '<bdi class="word"><i class="mark">·</i>told</bdi>'),
        ("\n\n", '<bdi class="word"><i class="mark">↵</i><i class="mark">↵</i></bdi>'),
        ("\t", '<bdi class="word"><i class="mark">→</i></bdi>'),
        ("", '<bdi class="word"><i class="mark">empty</i></bdi>'),
        ("\x00", '<bdi class="word"><i class="mark">x00</i></bdi>'),
        ("\u202e", '<bdi class="word"><i class="mark">U+202E</i></bdi>'),
        ("\u200b", '<bdi class="word"><i class="mark">U+200B</i></bdi>'),
        ("\ud800", '<bdi class="word"><i class="mark">U+D800</i></bdi>'),
        ("\u0301", '<bdi class="word">◌\u0301</bdi>'),
        ("<script>", '<bdi class="word">&lt;script&gt;</bdi>'),
        ("שלום", '<bdi class="word">שלום</bdi>'),
    ],
)
def test_every_token_can_be_seen(text, html):
    assert ui.token(text) == html


def test_a_passage_keeps_its_lines_and_its_spaces():
    assert ui.passage("a b\nc") == 'a b<i class="mark">↵</i>\nc'
    assert ui.passage(None) == ""


def test_a_passage_keeps_the_joiners_of_its_script():
    assert ui.passage("می\u200cخواهم") == "می\u200cخواهم"


@given(st.text())
def test_no_text_escapes_its_markup(text):
    for html in (ui.token(text), ui.passage(text), ui.tokens([(text, 1.5, 3, True), (text, 0, None, False)])):
        html.encode()  # nothing is left that UTF-8 refuses
        inner = html
        for ours in (
            '<bdi class="word">',
            "</bdi>",
            '<i class="mark">',
            "</i>",
            "</span>",
            '<span class="tok heat-3 peak" tabindex="0" data-value="1.50">',
        ):
            inner = inner.replace(ours, "")
        assert "<" not in inner and ">" not in inner
        assert not any(
            mark in inner for mark in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\x00\x1b\r"
        )


def test_an_example_stays_on_one_line_unless_it_is_shown_whole():
    pieces = [("a", 0, None, False), ("\n\n", 2.0, 4, True), ("b\n", 0, None, False)]
    assert "\n" not in ui.tokens(pieces) and ui.tokens(pieces).count("↵") == 3
    assert ui.tokens(pieces, True).count("\n") == 3


def test_spaces_on_which_a_feature_fires_can_be_seen():
    assert ui.tokens([("  ", 1.0, 9, False)]).count("·") == 2


def test_tokens_show_their_heat_their_value_and_the_peak():
    html = ui.tokens([("We", 0.0, None, False), (" told", 18.42, 9, True), (" it", 0.0, 0, False)])
    assert html == 'We<span class="tok heat-9 peak" tabindex="0" data-value="18.42"> told</span> it'


@pytest.mark.parametrize(
    ("state", "tone", "word"),
    [
        ("queued", "idle", "Waiting"),
        ("running", "running", "Running"),
        ("failed", "fail", "Failed"),
        ("ready", "ok", "Ready"),
        ("stalled", "warn", "Stalled"),
        ("stopping", "running", "Stopping"),
        ("not started", "idle", "Not started"),
    ],
)
def test_a_badge_has_an_icon_a_word_and_a_tone(state, tone, word):
    html = ui.badge(state)
    assert f"is-{tone}" in html and html.endswith(f"{word}</span>") and "#i-" in html


def test_a_badge_shows_the_state_that_a_job_derives():
    assert "Stalled" in ui.badge(SimpleNamespace(state="running", shown_state="stalled"))
    assert "Running" in ui.badge(SimpleNamespace(state="running"))


def test_an_unknown_state_is_shown_and_escaped():
    assert "&lt;b&gt;" in ui.badge("<b>")
    assert "Unknown" in ui.badge(None)


def test_an_icon_is_decoration_unless_it_has_a_name():
    assert 'aria-hidden="true"' in ui.icon("ok")
    assert 'role="img" aria-label="Done &quot;&lt;"' in ui.icon("ok", 'Done "<')


def test_what_a_job_reports_is_shown_with_its_names():
    rows = dict(
        ui.facts({"n_tokens": 65536, "ok": True, "held_out": {"ce": 0.98765}, "missing": None, "lengths": [1, 2]})
    )
    assert rows == {"n tokens": "65,536", "ok": "yes", "held out, CE": "0.9877", "missing": "–", "lengths": "1, 2"}
    assert ui.facts(None) == ui.facts("x") == []


def test_sites_are_grouped_by_block():
    sites = [
        {"name": "blocks.0.hook_resid_pre", "width": 8},
        {"name": "blocks.0.mlp.hook_post", "width": 16},
        {"name": "hook_embed", "width": 8},
    ]
    hooks = [("hook_resid_pre", 8), ("mlp.hook_post", 16)]
    assert ui.by_block(sites) == [("blocks.0", hooks), ("", [("hook_embed", 8)])]
    assert ui.by_block(None) == []


def test_blocks_with_the_same_sites_are_one_row():
    sites = [{"name": f"blocks.{n}.hook_z", "width": 16 if n < 3 else 8} for n in range(5)]
    assert ui.by_block(sites) == [("blocks.0 to 2", [("hook_z", 16)]), ("blocks.3 to 4", [("hook_z", 8)])]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (8_100_000_000, "bytes", "7.5 GiB"),
        (312_000_000, "tokens", "312 M tokens"),
        (1204, "documents", "1,204 documents"),
        (0, "", "0"),
        (None, "tokens", "–"),
    ],
)
def test_an_amount_has_the_unit_of_its_job(value, unit, text):
    assert ui.amount(value, unit) == text


def test_templates_have_the_tags_without_loading_them():
    html = rendered("{% icon 'ok' %}{{ n|thousands }} {{ t|token }}", n=1000, t="<b>")
    assert "1,000" in html and "&lt;b&gt;" in html


@pytest.mark.parametrize(
    ("rate", "unit", "text"),
    [
        (2.1e7, "bytes", "20.0 MiB/s"),
        (43_612, "tokens", "43.6 k tokens/s"),
        (0.5, "", "0.500/s"),
        (None, "tokens", "–"),
    ],
)
def test_a_rate_has_the_unit_of_its_job(rate, unit, text):
    assert ui.per_second(rate, unit) == text
