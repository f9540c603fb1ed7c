"""Tags and filters of every template: icons, badges, times, token text, and the formats of `mistudio.formats`.

Everything that returns markup escapes what it was given."""

import re
import unicodedata
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django import template
from django.conf import settings
from django.templatetags.static import static
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from mistudio.figures.series import ink
from mistudio.formats import (
    NONE,
    amount,
    binary,
    by_block,
    duration,
    facts,
    figure,
    fixed,
    hundredths,
    interval,
    listed,
    number,
    one_in,
    per_second,
    percent,
    sci,
    si,
    significant,
    thousands,
    words,
)

register = template.Library()

PLAIN: tuple[Callable[..., object], ...] = (
    amount,
    by_block,
    duration,
    facts,
    figure,
    fixed,
    hundredths,
    interval,
    listed,
    one_in,
    per_second,
    percent,
    sci,
    si,
    significant,
    thousands,
    words,
)
for function in PLAIN:
    register.filter(function.__name__, function)
register.filter("bytes", binary)

STATES = {  # state → (tone, icon, word)
    "queued": ("idle", "queued", "Waiting"),
    "running": ("running", "running", "Running"),
    "paused": ("idle", "pause", "Paused"),
    "succeeded": ("ok", "ok", "Finished"),
    "failed": ("fail", "fail", "Failed"),
    "cancelled": ("idle", "x", "Cancelled"),
    "ready": ("ok", "ok", "Ready"),
    "not started": ("idle", "todo", "Not started"),
    "evicted": ("idle", "x", "Evicted"),
    "missing": ("fail", "warn", "Missing"),
    "quarantined": ("fail", "warn", "Quarantined"),
    "stalled": ("warn", "warn", "Stalled"),
    "stopping": ("running", "stop", "Stopping"),
    "pausing": ("running", "pause", "Pausing"),
    "finishing": ("running", "ok", "Finishing early"),
    "dead": ("idle", "x", "Dead"),
    "dense": ("warn", "warn", "Dense"),
}


# ---- icons and badges


@register.simple_tag
def icon(name: str, label: str = "") -> SafeString:
    """A symbol of symbols.svg. With a label it is an image with a name, without one decoration."""
    address = f"{static('symbols.svg')}#i-{name}"
    if label:
        return format_html('<svg class="icon" role="img" aria-label="{}"><use href="{}"/></svg>', label, address)
    return format_html('<svg class="icon" aria-hidden="true"><use href="{}"/></svg>', address)


@register.simple_tag
def swatch(number: int) -> SafeString:
    """A piece of the line with this number, from 0, as charts draw it."""
    line = '<path class="line {}" d="M0,4h28"/>'
    return format_html('<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true">' + line + "</svg>", ink(number))


@register.simple_tag
def badge(state: Any, text: str = "", boxed: bool = False) -> SafeString:
    """Icon and word of a state: a state's name, or an object with `shown_state` or `state`."""
    name = str(getattr(state, "shown_state", None) or getattr(state, "state", None) or state or "")
    tone, symbol, word = STATES.get(name, ("idle", "info", name or "Unknown"))
    return format_html(
        '<span class="badge{} is-{}">{}{}</span>', " boxed" if boxed else "", tone, icon(symbol), text or word
    )


@register.simple_tag
def state_class(state: Any) -> str:
    """The tone of a state, for a class: is-ok."""
    return f"is-{STATES.get(str(getattr(state, 'state', state)), ('idle',))[0]}"


@register.filter
def measured(value: Any) -> Any:
    """For a fact that may be missing: its value, or "not measured"."""
    return "not measured" if value is None or value in ("", NONE) else value


@register.filter
def known(value: Any) -> Any:
    return NONE if value is None or value == "" else value


@register.filter
def units(value: Any) -> SafeString:
    """Sets the unit of a formatted number small and grey: 103.2 GiB, 7.9 %, 43.6 k."""
    text = str(value)
    if not re.search(r"\d", text):
        return escape(text)
    body, space, unit = text.rpartition(" ")
    if not space or re.search(r"\d", unit):
        return escape(text)
    return format_html('{}<span class="unit">{}</span>', body, unit)


@register.simple_tag
def span(rows: Any, name: str, places: int) -> str:
    """A figure of several rows, from the smallest to the largest: 0.912 to 0.968. Of one alone 0.912."""
    values = [number(row[name] if isinstance(row, dict) else getattr(row, name)) for row in rows]
    known = [value for value in values if value is not None]
    ends = [fixed(end, places) for end in (min(known), max(known))] if known else [NONE]
    return " to ".join(dict.fromkeys(ends))


# ---- time


@register.filter
def since(value: Any) -> str:
    """Seconds from a moment to now, as a duration."""
    return duration(timezone.now() - value) if isinstance(value, datetime) else NONE


@register.filter
def until(value: Any, end: Any) -> str:
    """How long from `value` to `end`; to now while there is no end."""
    if not isinstance(value, datetime):
        return NONE
    return duration((end if isinstance(end, datetime) else timezone.now()) - value)


def age(seconds: float) -> str:
    if seconds < 60:
        return "just now" if seconds < 5 else f"{seconds:.0f} s ago"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 86400:
        return f"{seconds // 3600:.0f} h ago"
    return f"{seconds // 86400:,.0f} d ago"


@register.filter
def ago(value: Any) -> SafeString:
    """<time>: relative to read, absolute to the second in its title."""
    if not isinstance(value, datetime):
        return mark_safe(NONE)
    seconds = (timezone.now() - value).total_seconds()
    return time_tag(value, age(seconds) if seconds >= 0 else "just now")


@register.filter
def clock(value: Any) -> SafeString:
    """<time>: 09:11 today, 19 Nov 17:05 on another day."""
    return at_time(value, "%H:%M")


@register.filter
def moment(value: Any) -> SafeString:
    """<time>: 09:11:05 today, 19 Nov 17:05:00 on another day."""
    return at_time(value, "%H:%M:%S")


def at_time(value: Any, form: str) -> SafeString:
    if not isinstance(value, datetime):
        return mark_safe(NONE)
    here = timezone.localtime(value)
    today = here.date() == timezone.localtime().date()
    return time_tag(value, f"{here:{form}}" if today else f"{here.day} {here:%b} {here:{form}}")


def time_tag(value: datetime, text: str) -> SafeString:
    here = timezone.localtime(value)
    return format_html(
        '<time datetime="{}" title="{}">{}</time>', here.isoformat(), f"{here:%Y-%m-%d %H:%M:%S %Z}", text
    )


# ---- tokens


@register.filter
def heat(value: Any, largest: Any) -> str:
    """Class of a token's ground, 0 to 9 of the feature's largest activation; none where it does not fire."""
    activation, top = number(value), number(largest)
    if activation is None or top is None or activation <= 0 or top <= 0:
        return ""
    return f"heat-{min(9, int(10 * activation / top))}"


def marked(character: str, visible_space: bool, breaks: bool) -> str:
    """Markup for one character that would not be seen, or would reorder or break the text around it."""
    code, category = ord(character), unicodedata.category(character)
    if character in "\n\t":
        return f'<i class="mark">{"↵" if character == chr(10) else "→"}</i>{character if breaks else ""}'
    if character == " " or category == "Zs":
        return '<i class="mark">·</i>' if visible_space else character
    if category == "Cf" and character in "\u200c\u200d" and not visible_space:
        return character  # joiners belong to the script; they reorder nothing
    if category in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
        return f'<i class="mark">{f"x{code:02X}" if code < 256 else f"U+{code:04X}"}</i>'
    return str(escape(character))


def visible(text: Any, visible_space: bool = False, breaks: bool = False) -> SafeString:
    raw = str(text) if text is not None else ""
    if raw and unicodedata.category(raw[0]).startswith("M"):
        raw = "◌" + raw  # a combining mark needs something to sit on
    return mark_safe("".join(marked(character, visible_space, breaks) for character in raw))


@register.filter
def passage(text: Any, words: Any = "") -> SafeString:
    """Text of documents: line breaks stay and are marked, what cannot be seen is written out; `words` stand out."""
    if not words:
        return visible(text, breaks=True)
    parts = re.split(f"({re.escape(str(words))})", str(text), flags=re.IGNORECASE)
    shown = (
        (mark_safe("<mark>{}</mark>" if n % 2 else "{}"), visible(part, breaks=True)) for n, part in enumerate(parts)
    )
    return mark_safe("".join(format_html(frame, part) for frame, part in shown))


@register.filter
def token(text: Any) -> SafeString:
    """One token alone, every space of it visible: ·told, ↵↵. Isolated from its neighbours' direction."""
    shown = visible(text, visible_space=True) or mark_safe('<i class="mark">empty</i>')
    return format_html('<bdi class="word">{}</bdi>', shown)


@register.simple_tag
def tokens(pieces: Any, whole: bool = False) -> SafeString:
    """A stretch of text from (text, value, heat step, is peak), on one line unless `whole`.

    Put it in an element with dir="auto"."""
    return format_html_join("", "{}", ((heated(bool(whole), *piece),) for piece in pieces))


def heated(breaks: bool, text: str, value: Any, step: int | None = None, peak: bool = False) -> SafeString:
    if step is None or not (number(value) or 0) > 0:
        return visible(text, breaks=breaks)
    classes = f"tok heat-{min(9, step)}{' peak' if peak else ''}"
    # Spaces alone would be a ground without anything on it, and could be lost at the end of a line.
    body = visible(text, visible_space=not text.strip(), breaks=breaks)
    # By key one comes to the peak of an example, by pointer or touch to every token.
    return format_html(
        '<span class="{}" tabindex="{}" data-value="{}">{}</span>', classes, 0 if peak else -1, fixed(value), body
    )


@register.filter
def admin_url(row: Any) -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])


@register.simple_tag
def version() -> str:
    return getattr(settings, "MISTUDIO_VERSION", "0.1.0")
