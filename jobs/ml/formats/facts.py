"""What the files of an SAE say of it before its weights are read, and every doubt about what they say. Needs nothing
but Python: pages show it too.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.ml.errors import CorruptData, Unusable, printable

MOST_JSON = 2**22  # bytes of a configuration
MOST_WIDTH = 2**24
MOST_COUNT = 2**40  # of anything: what is far too large for an SAE is said by its name later
AGAIN = "Fetch it again from where it comes, or ask whoever made it."


@dataclass(frozen=True)
class Facts:
    """Of an SAE as it will be once it is read here: `architecture` is one of ours."""

    format: str
    architecture: str
    d_in: int
    width: int
    d_out: int = 0  # 0: d_in
    options: Mapping[str, Any] = field(default_factory=dict)  # k, parts
    centred: bool = True  # b_dec is taken off the input
    skip: bool = False
    weighted: bool = False  # the k latents are chosen by a_i ||W_dec_i||, not by a_i
    transcodes: bool = False
    reads: tuple[str, ...] = ()  # our names of sites; empty where the files do not tell
    writes: tuple[str, ...] = ()
    model_name: str = ""
    dataset: str = ""
    context_size: int | None = None
    notes: tuple[str, ...] = ()  # what a person should know before it is imported

    @property
    def k(self) -> int | None:
        k: int | None = self.options.get("k")
        return k

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the weights, in our orientation."""
        d_in, d_out, width = self.d_in, self.d_out or self.d_in, self.width
        found: dict[str, tuple[int, ...]] = {
            "W_enc": (width, d_in), "W_dec": (width, d_out), "b_enc": (width,), "b_dec": (d_out,),
        }  # fmt: skip
        if self.architecture == "jumprelu":
            found["threshold"] = (width,)
        if self.architecture == "gated":
            found |= {"r_mag": (width,), "b_mag": (width,)}
        if self.skip:
            found["W_skip"] = (d_out, d_in)
        return found

    def check(self) -> "Facts":
        """Raises Unusable for what cannot be an SAE."""
        for name, most in (("d_in", 2**20), ("width", MOST_WIDTH)):
            if not 0 < getattr(self, name) <= most:
                raise Unusable(f"{name} is {getattr(self, name):,}, not 1 to {most:,}.", AGAIN)
        if self.k is not None and not 0 < self.k <= self.width:
            raise Unusable(f"k is {self.k:,}, but there are {self.width:,} latents.", AGAIN)
        return self


def scale(width: int, norm: float, said: str) -> float:
    """What activations of this mean norm are multiplied with, that it is sqrt(width). said: what told it. Raises
    Unusable."""
    if not norm > 0:
        raise Unusable(f"{said} is {norm:g}, which no mean norm can be.", AGAIN)
    return float(width**0.5 / norm)


class Config:
    """A JSON object of a stranger: each value is asked for with the kind that it must be."""

    def __init__(self, values: Any, name: str) -> None:
        if not isinstance(values, dict):
            raise CorruptData(f"{name} holds no JSON object.", AGAIN)
        self.values, self.name = values, name

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Raises CorruptData."""
        if path.stat().st_size > MOST_JSON:
            raise CorruptData(f"{path.name} has more than {MOST_JSON:,} bytes, which no configuration has.", AGAIN)
        try:
            return cls(json.loads(path.read_text(encoding="utf-8")), path.name)
        except (ValueError, RecursionError) as error:
            raise CorruptData(f"{path.name} is no JSON: {error}.", AGAIN) from error

    def inner(self, name: str) -> "Config":
        return Config(self.values.get(name) or {}, f"{name} of {self.name}")

    def wrong(self, name: str, wanted: str) -> Unusable:
        said = f"is {str(self.values[name])[:60]!r}" if name in self.values else "is missing"
        return Unusable(f"{self.name}: {name} {said}; it must be {wanted}.", AGAIN)

    def count(self, name: str, otherwise: int | None = None) -> int:
        value = self.values.get(name, otherwise)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_COUNT:
            raise self.wrong(name, f"a whole number from 1 to {MOST_COUNT:,}")
        return value

    def number(self, name: str) -> float:
        value = self.values.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
            raise self.wrong(name, "a finite number")
        return float(value)

    def flag(self, name: str, otherwise: bool) -> bool:
        value = self.values.get(name, otherwise)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str) -> str:
        """ "" where it is missing or nothing; without characters that cannot be printed."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "a text")
        return printable(value or "")[:500]
