"""Numbers, rates, sizes and durations as people read them. None and NaN are "–"; nothing here is markup."""

import math
from datetime import timedelta
from typing import Any

NONE = "–"
WRITTEN = {  # words of the code that people write otherwise
    **{word: word.upper() for word in ("bos", "ce", "cpu", "ev", "fvu", "gpu", "kl", "l0", "l1", "l2", "mse", "sae")},
    "abstopk": "AbsTopK",
    "batchtopk": "BatchTopK",
    "d_in": "width of the site",
    "dtype": "precision",
    "jumprelu": "JumpReLU",
    "lr": "learning rate",
    "model_batch": "sequences per forward pass",
    "topk": "TopK",
}
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def number(value: Any) -> float | None:
    """A finite float, or None for whatever is not one."""
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None


def grouped(value: float, places: int) -> str:
    text = f"{value:,.{places}f}".replace("-", "−")
    return text.removeprefix("−") if not any(digit in text for digit in "123456789") else text


def thousands(value: Any) -> str:
    """65,536. Whole numbers only; Python's integers keep every digit."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace("-", "−")
    known = number(value)
    return NONE if known is None else grouped(known, 0)


def fixed(value: Any, places: Any = 2) -> str:
    known = number(value)
    return NONE if known is None else grouped(known, int(places))


def significant(value: Any, digits: Any = 3) -> str:
    """Three significant digits without an exponent where that stays short: 18.4, 0.0123, 43,612, 3e-7."""
    known = number(value)
    if known is None:
        return NONE
    if known == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(known)))
    if magnitude < -3 or magnitude > 8:
        return sci(known)
    return grouped(known, max(0, int(digits) - 1 - magnitude))


def figure(value: Any) -> str:
    """Of what was measured: 0.913, 41.7, 1,204."""
    known = number(value)
    if known is None:
        return NONE
    size = abs(known)
    return significant(known) if 0 < size < 0.0005 else grouped(known, 3 if size < 10 else 1 if size < 1000 else 0)


def interval(measured: Any) -> str:
    """[0.905, 0.921] of {low, high}; nothing where there is no interval."""
    low, high = (number(measured.get(end)) for end in ("low", "high")) if isinstance(measured, dict) else (None, None)
    return "" if low is None or high is None else f"[{figure(low)}, {figure(high)}]"


def listed(values: Any) -> str:
    """Several values with commas between them, as forms keep them: "256,4096" → 256, 4,096."""
    parts = [part.strip() for part in str(values).split(",") if part.strip()]
    return ", ".join(thousands(int(part)) if part.isdecimal() else part for part in parts)


def si(value: Any) -> str:
    """Three digits and a letter: 43.6 k, 312 M, 9.62 B."""
    known = number(value)
    if known is None:
        return NONE
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(known) >= size * 0.9995:
            scaled = known / size
            places = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{grouped(scaled, places)} {letter}"
    if known == int(known):
        return grouped(known, 0)
    return significant(known)


def binary(value: Any) -> str:
    """Binary units: 103.2 GiB."""
    known = number(value)
    if known is None:
        return NONE
    step = 0
    while abs(known) >= 1023.95 and step < len(UNITS) - 1:
        known, step = known / 1024, step + 1
    return f"{grouped(known, 1 if step else 0)} {UNITS[step]}"


def amount(value: Any, unit: str) -> str:
    """Of what a job counts: 7.5 GiB of bytes, 312 M tokens, 1,204 documents."""
    known = number(value)
    if known is None or unit == "bytes":
        return binary(value)
    return f"{si(known) if abs(known) >= 1e6 else thousands(round(known))} {unit}".strip()


def per_second(rate: Any, unit: str) -> str:
    """20.0 MiB/s, 43.6 k tokens/s"""
    known = number(rate)
    text = binary(known) if known is None or unit == "bytes" else f"{si(known)} {unit}".strip()
    return text if known is None else f"{text}/s"


def percent(value: Any, places: Any = 1) -> str:
    """Of a share: 0.079 → 7.9 %. Neither 0 nor 100 is claimed by rounding alone."""
    share = number(value)
    hundred = number(share * 100) if share is not None else None
    if hundred is None:
        return NONE
    step = 10 ** -int(places)
    if 0 < hundred < step / 2:
        return f"< {step:g} %"
    if 100 - step / 2 <= hundred < 100:
        return f"> {100 - step:g} %"
    return f"{grouped(hundred, int(places))} %"


def hundredths(value: Any, places: Any = 1) -> str:
    """Of a number that already is in percent: 62.4 → 62.4 %. Does not reach 100 by rounding."""
    known = number(value)
    return NONE if known is None else percent(known / 100, places)


def one_in(value: Any) -> str:
    """A rate that people compare: 0.001634 → 1 in 612; above one in ten in percent; never is "never"."""
    known = number(value)
    if known is None:
        return NONE
    if known < 1e-15:
        return "never" if known <= 0 else "almost never"
    return percent(known) if known > 0.1 else f"1 in {thousands(round(1 / known))}"


def sci(value: Any) -> str:
    """Learning rates and coefficients: 3e-4, and plainly what is short without an exponent: 5, 0.02."""
    known = number(value)
    if known is None:
        return NONE
    if known == 0 or 0.01 <= abs(known) < 10_000:
        return f"{known:.3g}" if abs(known) < 1000 else f"{known:.0f}"
    mantissa, _, exponent = f"{known:.2e}".partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


def duration(value: Any) -> str:
    """Seconds or a timedelta, two units at most: 0.4 s, 41 s, 2 min 08 s, 1 h 12 min, 3 d 4 h."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    seconds = number(value)
    if seconds is None:
        return NONE
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{thousands(whole // 86400)} d {whole % 86400 // 3600} h"


def words(name: Any) -> str:
    """A name of the code as people read it: train_sae → train SAE, DISK_FULL → disk full."""
    text = str(name)
    text = text.lower() if text.isupper() and "_" in text else text
    return WRITTEN.get(text) or " ".join(WRITTEN.get(word, word) for word in text.split("_"))


def facts(values: Any) -> list[tuple[str, str]]:
    """Whatever a job reported, as (name, text) rows: n_tokens → "n tokens", numbers with their commas."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items() if isinstance(values, dict) else ():
        label = words(name)
        if isinstance(value, dict):
            rows += [(f"{label}, {inner}", text) for inner, text in facts(value)]
        elif isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
            rows.append((label, f"{len(value):,} entries"))
        elif isinstance(value, list | tuple):
            said = ", ".join(fact(item) for item in value[:20]) + (" …" if len(value) > 20 else "")
            rows.append((label, said or NONE))
        else:
            rows.append((label, fact(value)))
    return rows


def fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return thousands(value)
    return significant(value, 4) if isinstance(value, float) else NONE if value is None else str(value)


def block_and_hook(site: str) -> tuple[str, str]:
    """ "blocks.3.hook_z" → ("blocks.3", "hook_z"); of the whole model ("", "hook_embed")."""
    *block, hook = site.split(".", 2)
    return ".".join(block), hook


def short_site(site: str) -> str:
    """For a name: blocks.3.hook_resid_pre → L3-resid_pre"""
    return site.replace("blocks.", "L").replace("hook_", "").replace(".", "-").replace(":", "-")


def by_block(sites: Any) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Sites of a model by block, blocks of the same hooks as one: ("blocks.0 to 25", [("hook_z", 768), …])."""
    rows: dict[str, list[tuple[str, Any]]] = {}
    for site in sites or ():
        block, hook = block_and_hook(str(site.get("name", "")))
        rows.setdefault(block, []).append((hook, site.get("width")))
    merged: list[tuple[str, list[tuple[str, Any]]]] = []
    for block, hooks in rows.items():
        if merged and merged[-1][1] == hooks:
            merged[-1] = (f"{merged[-1][0].split(' to ')[0]} to {block.rpartition('.')[2]}", hooks)
        else:
            merged.append((block, hooks))
    return merged
