"""Names of sites as people write them; sites.py finds their tensors. Needs nothing but Python: pages check names too.

blocks.3.hook_resid_post         a tensor of block 3, under TransformerLens' name
hook_embed                       what the token ids are looked up as
blocks.3.hook_z.5                one head of blocks.3.hook_z
module:model.layers.3.mlp        what any module puts out, by its path in the transformers model
module:model.layers.3.mlp:input  what goes into it
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal

Side = Literal["input", "output"]

EMBED = "hook_embed"
HEAD = re.compile(r"(blocks\.\d+\.hook_z)\.(\d{1,4})")
MODULE = re.compile(r"module:([^\s:.]+(?:\.[^\s:.]+)*)(?::(input|output))?")


def head_of(name: str) -> tuple[str, int] | None:
    """("blocks.3.hook_z", 5) where the name is that of a single head."""
    match = HEAD.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def module_of(name: str) -> tuple[str, Side] | None:
    """The module's path and the side of it where the name is that of a module."""
    match = MODULE.fullmatch(name)
    if match is None:
        return None
    return match[1], "input" if match[2] == "input" else "output"


def module_site(path: str, side: Side) -> str:
    return f"module:{path}" + (":input" if side == "input" else "")


def suggestion(name: str, known: Iterable[str]) -> str:
    """A sentence with the closest of the known names, "" where none is close."""
    found = get_close_matches(name, known, n=1)
    return f"Did you mean {found[0]}?" if found else ""
