"""Rules that keep the look safe: contrast of every colour pair in use, templates without inline style or script."""

import re
from pathlib import Path

import pytest
from django.contrib.staticfiles import finders
from django.template import Context, Template
from django.template.loader import get_template

from mistudio.models import Team

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
STYLES = sorted((ROOT / "static").glob("*.css"))
TOKENS = (ROOT / "static" / "tokens.css").read_text()
PAIR = re.compile(r"--([\w-]+):\s*light-dark\((#[0-9a-f]{6}),\s*(#[0-9a-f]{6})\)")
ALIAS = re.compile(r"--([\w-]+):\s*var\(--([\w-]+)\)")
PLANES = ("bg", "sunk", "raised", "hover", "picked")
SOFT = {name: f"{name}-soft" for name in ("ok", "warn", "fail", "run", "idle")}


def colours():
    found = {name: pair for name, *pair in PAIR.findall(TOKENS)}
    return found | {name: found[other] for name, other in ALIAS.findall(TOKENS) if other in found}


COLOURS = colours()


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(front, back, theme):
    """WCAG 2: from 1 to 21. Theme 0 is light, 1 dark."""
    bright, dim = sorted((luminance(COLOURS[name][theme]) for name in (front, back)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def body(path):
    return path.read_text()


def shown(path):
    return str(path.relative_to(ROOT))


def test_every_class_of_the_stylesheets_is_written_somewhere():
    rules = re.sub(
        r"/\*.*?\*/|\{[^{}]*\}", " ", "".join(body(path) for path in STYLES if path.name != "admin.css"), flags=re.S
    )
    sources = [*TEMPLATES, *(ROOT / "mistudio").rglob("*.py"), *(ROOT / "static").glob("*.js")]
    written = set(re.findall(r"[\w-]+", " ".join(body(path) for path in sources)))
    made = {"htmx-request", *(f"c{n}" for n in range(1, 9))}  # by htmx; by `ink`
    assert set(re.findall(r"\.([a-z][\w-]*)", rules)) - written == made


def test_contrast_is_computed_as_the_guidelines_say():
    COLOURS["white"], COLOURS["black"] = ("#ffffff",) * 2, ("#000000",) * 2
    assert contrast("white", "black", 0) == pytest.approx(21)
    assert len(COLOURS) > 40


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("text", ["ink", "muted", "accent", "accent-hover"])
def test_text_can_be_read_on_every_plane(text, plane, theme):
    assert contrast(text, plane, theme) >= 4.5


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("plane", ["bg", "sunk", "raised", "hover"])
@pytest.mark.parametrize("text", ["faint", "ok", "warn", "fail"])
def test_units_and_states_can_be_read_where_they_stand(text, plane, theme):
    assert contrast(text, plane, theme) >= 4.5


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("state", "ground"), SOFT.items())
def test_a_state_can_be_read_on_its_own_ground(state, ground, theme):
    assert contrast(state, ground, theme) >= 4.5
    assert contrast("ink", ground, theme) >= 4.5
    assert contrast("muted", ground, theme) >= 4.5


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_words_of_a_primary_button_can_be_read(theme):
    assert contrast("on-accent", "accent", theme) >= 4.5
    assert contrast("on-accent", "accent-hover", theme) >= 4.5


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("mark", ["field", "focus", "heat-line", *(f"s{n}" for n in range(1, 9))])
def test_marks_and_edges_of_controls_can_be_seen(mark, theme):
    assert contrast(mark, "bg", theme) >= 3


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("step", range(10))
def test_a_token_can_be_read_on_every_step_of_heat(step, theme):
    ink = "heat-ink-lit" if step >= 8 else "heat-ink"
    assert contrast(ink, f"heat-{step}", theme) >= 4.5


@pytest.mark.parametrize("path", TEMPLATES, ids=shown)
def test_a_template_has_no_inline_style_script_or_handler(path):
    text = body(path)
    assert not re.search(r"\sstyle\s*=", text), "sizes belong into classes or SVG attributes"
    assert "<style" not in text
    assert not re.search(r"\son[a-z]+\s*=", text), "handlers belong into live.js"
    assert "javascript:" not in text and "hx-on" not in text and "js:" not in text
    for tag in re.findall(r"<script\b[^>]*>", text):
        assert "src=" in tag, "the policy refuses scripts in the page"


@pytest.mark.parametrize("path", TEMPLATES, ids=shown)
def test_a_template_loads_nothing_from_another_host_and_trusts_nothing(path):
    text = body(path)
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?(?:https?:)?//""", text)
    assert "|safe" not in text and "autoescape off" not in text, "markup comes from tags that escape"


@pytest.mark.parametrize("path", TEMPLATES, ids=shown)
def test_a_template_is_short_and_compiles(path):
    assert len(body(path).splitlines()) <= 120
    get_template(str(path.relative_to(ROOT / "templates")))


@pytest.mark.parametrize("path", TEMPLATES, ids=shown)
def test_every_form_that_changes_something_carries_its_token(path):
    for form in re.findall(r'<form\b[^>]*method="post".*?</form>', body(path), re.DOTALL):
        assert "{% csrf_token %}" in form


@pytest.mark.parametrize("path", STYLES, ids=shown)
def test_a_style_sheet_is_short_and_keeps_to_itself(path):
    text = body(path)
    assert len(text.splitlines()) <= 500
    assert "url(" not in text and "@import" not in text


@pytest.mark.parametrize("path", [path for path in STYLES if path.name != "tokens.css"], ids=shown)
def test_colours_are_written_once_in_the_tokens(path):
    assert not re.search(r"#[0-9a-f]{3,8}\b(?![^{]*\{)", re.sub(r"/\*.*?\*/", "", body(path), flags=re.DOTALL))


@pytest.mark.parametrize("path", STYLES, ids=shown)
def test_every_token_that_a_style_uses_exists(path):
    names = set(re.findall(r"--([\w-]+)\s*:", "".join(map(body, STYLES))))
    used = set(re.findall(r"var\(--([\w-]+)", body(path)))
    assert used <= names


def test_every_icon_that_a_template_names_is_drawn():
    drawn = set(re.findall(r'<symbol id="i-([\w-]+)"', body(ROOT / "static" / "symbols.svg")))
    named = {name for path in TEMPLATES for name in re.findall(r"""\{% icon ["']([\w-]+)["']""", body(path))}
    from mistudio.templatetags.ui import STATES

    assert named | {symbol for _, symbol, _ in STATES.values()} <= drawn


def test_every_class_of_state_has_its_colour():
    styles = "".join(map(body, STYLES))
    assert all(f".is-{tone} {{" in styles for tone in ("running", "ok", "warn", "fail", "idle"))


def test_the_scripts_of_a_page_come_from_this_site():
    html = get_template("_scripts.html").render({"team": Team(pk=3)})
    sources = re.findall(r'src="([^"]+)"', html)
    assert [source.rsplit("/", 1)[-1] for source in sources][:1] == ["htmx-2.min.js"]
    assert any("hx-ws" in source for source in sources) and any("live.js" in source for source in sources)
    for source in sources:
        assert finders.find(source.removeprefix("/static/")), f"{source} is not served"
    assert '"allowEval":false' in html and '"includeIndicatorStyles":false' in html


def test_a_page_for_nobody_opens_no_socket():
    assert "ws-connect" not in get_template("_live_socket.html").render({})
    assert "hx-ws" not in get_template("_scripts.html").render({})


def test_the_socket_asks_for_every_topic_and_escapes_it():
    html = get_template("_live_socket.html").render({"team": Team(pk=3), "topics": ["jobs.12", 'a"&b']})
    assert 'ws-connect="/live/?t=shell.3&amp;t=jobs.12&amp;t=a%22%26b"' in html
    assert 'data-poll="/live/fragments/?t=shell.3&amp;t=jobs.12&amp;t=a%22%26b"' in html


# Their own topics show it; a form that asks anew at each change of what is filled in.
SHOWN_ANYWAY = {"templates/home.html", "templates/upkeep/list.html", "templates/activation_cache/new.html"}


def whole(path):
    """With all parts that it includes, and theirs."""
    text = body(path)
    return text + "".join(whole(ROOT / "templates" / name) for name in re.findall(r'\{% include "([^"]+)"', text))


def test_a_page_that_shows_the_state_of_a_job_follows_it():
    pages = {shown(path): whole(path) for path in TEMPLATES if '{% extends "base.html" %}' in body(path)}
    states = {name for name, text in pages.items() if re.search(r'\{% badge (?!"|object\.state)', text)}
    assert len(states) > 15
    assert {name for name in states if "data-follow" not in pages[name]} == SHOWN_ANYWAY


def test_the_script_is_short():
    assert len(body(ROOT / "static" / "live.js").splitlines()) <= 150


def test_a_chosen_theme_is_written_before_the_first_paint():
    assert "data-theme" not in Template("{% include 'base.html' %}").render(Context({"theme": "system"}))[:200]
    assert 'data-theme="dark"' in get_template("base.html").render({"theme": "dark"})[:200]


def test_a_page_can_be_drawn_without_what_the_shell_adds():
    html = get_template("base.html").render({})
    assert 'id="main"' in html and 'href="#main"' in html
