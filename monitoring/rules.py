"""What raises an alert: rules over the readings of a host, and over how long something has been silent."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from django.conf import settings
from django.utils.module_loading import import_string

from monitoring.history import newest
from monitoring.models import Threshold
from monitoring.reading import DAY, Values

GONE = 7 * DAY  # seconds: a host that was silent for so long is no longer expected


@dataclass(frozen=True)
class Rule:
    """A value worse than `limit` for so many seconds raises an alert; none worse than `recovers` for as long ends it.

    The value is that of a thing in a host's readings; or it is the seconds for which something on any host was silent,
    which last as long as they say: whoever looks finds the same."""

    name: str
    label: str
    unit: str
    limit: float
    recovers: float
    seconds: int = 0
    falls: bool = False  # the lower, the worse
    of_reading: Callable[[Values], dict[str, float]] | None = None  # thing → value
    silence: Callable[[datetime], dict[tuple[str, str], float]] | None = None  # host, thing → seconds

    def worse(self, value: float, than: float) -> bool:
        return value < than if self.falls else value > than

    def worst(self, one: float, other: float) -> float:
        return one if self.worse(one, other) else other


def gpu_temperature(values: Values) -> dict[str, float]:
    return {f"GPU {n}": value for n, value in per_gpu(values, "temperature").items()}


def gpu_memory(values: Values) -> dict[str, float]:
    used, total = per_gpu(values, "memory"), per_gpu(values, "memory.total")
    return {f"GPU {n}": round(100 * used[n] / total[n], 1) for n in used if total.get(n)}


def per_gpu(values: Values, figure: str) -> dict[str, float]:
    """By the number of the GPU."""
    found = ((re.fullmatch(rf"gpu\.(\d+)\.{re.escape(figure)}", name), value) for name, value in values.items())
    return {match[1]: value for match, value in found if match}


def memory(values: Values) -> dict[str, float]:
    used, total = values.get("memory.used"), values.get("memory.total")
    return {"": round(100 * used / total, 1)} if used is not None and total else {}


def disk(values: Values) -> dict[str, float]:
    return {
        name.removeprefix("disk.").removesuffix(".free")[:200]: round(value / 1e9, 1)
        for name, value in values.items()
        if name.startswith("disk./") and name.endswith(".free")
    }


def silent_hosts(now: datetime) -> dict[tuple[str, str], float]:
    """Up to three intervals are no silence."""
    ages = {sample.host: (now - sample.at).total_seconds() for sample in newest(now).values()}
    return {
        (host.name, ""): age if age > 3 * host.facts.get("seconds", 0) else 0.0
        for host, age in ages.items()
        if age < GONE
    }


RULES = (
    Rule("gpu-temperature", "GPU temperature", "°C", 85, 80, 30, of_reading=gpu_temperature),
    Rule("gpu-memory", "GPU memory in use", "%", 98, 95, 60, of_reading=gpu_memory),
    Rule("memory", "Memory in use", "%", 95, 90, 30, of_reading=memory),
    Rule("disk", "Free space for data", "GB", 10, 12, 10, falls=True, of_reading=disk),
    Rule("host-silent", "No reading", "s", 30, 10, silence=silent_hosts),
)


def known() -> dict[str, Rule]:
    """By name: these, and those of the settings, of what only others can know."""
    others = [rule for path in settings.MONITOR_RULES for rule in import_string(path)]
    return {rule.name: rule for rule in (*RULES, *others)}


def rules() -> dict[str, Rule]:
    """As they hold now: with the thresholds that were changed, without the rules that were turned off."""
    changed = {row.rule: row for row in Threshold.objects.all()}
    return {
        name: rule if row is None else replace(rule, limit=row.limit, recovers=row.recovers, seconds=row.seconds)
        for name, rule in known().items()
        for row in [changed.get(name)]
        if row is None or row.on
    }
