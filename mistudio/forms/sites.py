"""Sites of a language model to tick, block by block, with a field beside them for those that are not listed."""

from typing import Any

from mistudio.formats import block_and_hook
from mistudio.models import LanguageModel

Grid = list[tuple[str, list[dict[str, Any]]]]


def site_grid(model: LanguageModel, named: list[str]) -> Grid:
    """Each block of the model with its sites, and whether they are among those named."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for site in model.sites:
        block, hook = block_and_hook(site["name"])
        rows.setdefault(block, []).append({**site, "hook": hook, "ticked": site["name"] in named})
    return list(rows.items())


def unlisted(model: LanguageModel, named: list[str]) -> str:
    """Those named that are not in the grid: single heads and modules."""
    listed = {site["name"] for site in model.sites}
    return ", ".join(name for name in named if name not in listed)


def middle_residual(model: LanguageModel) -> str:
    """What is taken where no site is named."""
    wanted = f"blocks.{(model.n_layers or 2) // 2}.hook_resid_pre"
    names = [entry["name"] for entry in model.sites]
    return wanted if wanted in names else (names[0] if names else "")
