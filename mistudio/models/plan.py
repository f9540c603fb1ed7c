"""From what a form asks for, with several values in one field, to the SAEs of a training."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from typing import Any, Protocol, TypeVar

from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.architectures.options import OPTIONS, Value

Row = TypeVar("Row")
MOST = 64  # SAEs of one training


class Asked(Protocol):
    """Values with commas between them; lr may be empty. options: name → such values."""

    site: str
    writes: str
    architecture: str
    width: str
    lr: str
    seed: str
    options: dict[str, str]


def best_of_each(rows: Iterable[Row], rebuilds: Callable[[Row], Any], ev: Callable[[Row], float | None]) -> list[Row]:
    """Of the rows that rebuild the same, the one that explains most. What was not measured is in none."""
    known = [(value, row) for row in rows if (value := ev(row)) is not None]
    return list({rebuilds(row): row for _, row in sorted(known, key=itemgetter(0))}.values())


def names_of(value: Any) -> list[str]:
    """Of several things, ticked or with commas between them; each once."""
    parts = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    return list(dict.fromkeys(name.strip() for part in parts for name in str(part).split(",") if name.strip()))


def saes_of(asked: Asked) -> list[dict[str, Any]]:
    """Every combination, as the engine takes it, the architecture changing last. An architecture has its own options
    alone, so that what one is asked for does not multiply the others. Raises ValueError for what is no number."""
    rates: list[float | None] = [float(lr) for lr in names_of(asked.lr)] or [None]
    return [
        {
            "reads": list(reads),
            "writes": [asked.writes] if ARCHITECTURES[name].transcodes and asked.writes else [],
            "architecture": name,
            "width": int(width),
            "options": {**ARCHITECTURES[name].presets, **dict(own)},
            "lr": lr,
            "seed": int(seed),
        }
        for name in names_of(asked.architecture)
        for reads, width, own, lr, seed in product(
            readings(name, names_of(asked.site)),
            names_of(asked.width),
            choices(name, asked.options),
            rates,
            names_of(asked.seed),
        )
    ]


@dataclass(frozen=True)
class Product:
    """The SAEs of one architecture: one for each combination of so many values."""

    label: str
    factors: list[tuple[int, str]]  # how many of what, where there are several

    @property
    def count(self) -> int:
        return math.prod(n for n, _ in self.factors)


def products(asked: Asked) -> list[Product]:
    """Of each architecture, what its part of `saes_of` is the product of."""
    found = []
    for name in names_of(asked.architecture):
        own = ARCHITECTURES[name]
        counts = [
            (len(readings(name, names_of(asked.site))), "sites"),
            (len(names_of(asked.width)), "widths"),
            *(
                (len(names_of(asked.options.get(option))), f"values of {OPTIONS[option].label}")
                for option in own.presets
            ),
            (len(names_of(asked.lr)), "learning rates"),
            (len(names_of(asked.seed)), "seeds"),
        ]
        found.append(Product(own.label, [(n, noun) for n, noun in counts if n > 1]))
    return found


def readings(architecture: str, sites: list[str]) -> list[tuple[str, ...]]:
    """A crosscoder reads all sites side by side, the others have an SAE for each."""
    return [tuple(sites)] if ARCHITECTURES[architecture].spans else [(site,) for site in sites]


def choices(architecture: str, options: dict[str, str]) -> Iterator[tuple[tuple[str, Value], ...]]:
    own = [name for name in ARCHITECTURES[architecture].presets if options.get(name)]
    return product(*([(name, OPTIONS[name].kind(value)) for value in names_of(options[name])] for name in own))


def differences(members: list[dict[str, Any]]) -> list[str]:
    """What tells each SAE from the others, in a few words; "" where there is one."""
    flat = [
        {
            "architecture": ARCHITECTURES[one["architecture"]].label,
            "site": " + ".join(one["reads"]),
            "width": f"{one['width']:,}",
            **{name: f"{OPTIONS[name].label} {value}" for name, value in one["options"].items()},
            "lr": "" if one["lr"] is None else f"lr {one['lr']:g}",
            "seed": f"seed {one['seed']}",
        }
        for one in members
    ]
    names = dict.fromkeys(name for one in flat for name in one)
    varied = [name for name in names if differs(flat, name)]
    return [" · ".join(one[name] for name in varied if one.get(name)) for one in flat]


def differs(flat: list[dict[str, str]], name: str) -> bool:
    """Options are compared within an architecture: that one has what another has not tells nothing new."""
    seen = {(one["architecture"] if name in OPTIONS else "", one[name]) for one in flat if name in one}
    return len(seen) > len({group for group, _ in seen})
