"""The options of all architectures as fields of a form, made from the engine's tables."""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from django import forms
from django.forms.forms import DeclarativeFieldsMetaclass

from jobs.ml.architectures import ARCHITECTURES, Architecture
from jobs.ml.architectures.options import OPTIONS, Value
from mistudio.forms.several import SeveralBoxes, SeveralField


def having(option: str) -> dict[str, Architecture]:
    return {name: one for name, one in ARCHITECTURES.items() if option in one.presets}


def spoken(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def presets(option: str) -> dict[str, list[str]]:
    """Each preset, with the labels of the architectures that have it."""
    found: dict[str, list[str]] = {}
    for one in having(option).values():
        found.setdefault(spoken(one.presets[option]), []).append(one.label)
    return found


def option_field(name: str) -> SeveralField:
    """Of an option that some architectures have; empty is the preset of each."""
    option, preset = OPTIONS[name], " or ".join(presets(name))
    about = f"{option.help} Empty: {preset}. {', '.join(one.label for one in having(name).values())}."
    boxes = SeveralBoxes(choices=[(word, word) for word in option.choices])
    typed = forms.TextInput(attrs={"placeholder": preset, "autocomplete": "off"})
    return SeveralField(option.kind, label=option.label, help_text=about, widget=boxes if option.choices else typed)


def short_help(name: str) -> str:
    """Beside a field that shows its preset, under the architectures that have it."""
    found = presets(name)
    if OPTIONS[name].choices:
        return f"{OPTIONS[name].help} None ticked: {' or '.join(found)}."
    differing = "; ".join(f"{', '.join(labels)}: {preset}" for preset, labels in list(found.items())[1:])
    return f"{OPTIONS[name].help} Preset of {differing}." if differing else OPTIONS[name].help


# The options of all architectures, under their names.
OPTION_FIELDS = {name: option_field(name) for name in OPTIONS}
OptionFields = DeclarativeFieldsMetaclass("OptionFields", (forms.Form,), OPTION_FIELDS)


@dataclass(frozen=True)
class OptionGroup:
    """Options that the same architectures have."""

    architectures: dict[str, Architecture]
    fields: list[forms.BoundField]

    @property
    def names(self) -> str:
        return " ".join(self.architectures)

    @property
    def wrong(self) -> bool:
        return any(field.errors for field in self.fields)


def option_groups(form: forms.BaseForm) -> list[OptionGroup]:
    """In the order of the table; those of one architecture come together."""
    together = [(tuple(having(name)), name) for name in OPTIONS]
    firsts = list(dict.fromkeys(names for names, _ in together))
    together.sort(key=lambda one: firsts.index(one[0]))
    return [
        OptionGroup({name: ARCHITECTURES[name] for name in names}, [form[option] for _, option in options])
        for names, options in groupby(together, key=lambda one: one[0])
    ]


def architecture_rows(ticked: list[str]) -> list[tuple[str, list[dict[str, Any]]]]:
    """By what they rebuild, each with whether it is ticked."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, one in ARCHITECTURES.items():
        rebuilt = "several sites" if one.spans else "another site" if one.transcodes else "their site"
        rows.setdefault(rebuilt, []).append({"name": name, "label": one.label, "ticked": name in ticked})
    return list(rows.items())
