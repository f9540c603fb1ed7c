"""Names of sites in other libraries → ours, where they say enough."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jobs.ml.site_names import module_of

BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)$")
WITHIN = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.([a-z_]+)$")
ATTENTION = ("attn", "attention", "self_attn", "self_attention")
OURS = re.compile(r"hook_embed|blocks\.\d+\.(?:mlp\.)?hook_[a-z_]+(?:\.\d+)?")
ENTERS = re.compile(r"blocks\.([1-9]\d*)\.hook_resid_pre")
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
PREFIXES = ("model.", "transformer.", "gpt_neox.", "model.decoder.", "bert.", "distilbert.")


def site_of_module(path: str) -> str:
    """Of what the module at a path in a transformers model puts out, "" where it is none of the usual ones. A name of
    ours, which stands where no module puts the site out, stays."""
    if OURS.fullmatch(path) or module_of(path):
        return path
    if block := BLOCK.search(path):
        return f"blocks.{block[1]}.hook_resid_post"
    if within := WITHIN.search(path):
        kind = "hook_mlp_out" if within[2] == "mlp" else "hook_attn_out" if within[2] in ATTENTION else ""
        return f"blocks.{within[1]}.{kind}" if kind else ""
    return "hook_embed" if path.rpartition(".")[2] in EMBEDDINGS else ""


def module_that_puts_out(site: str, sites: Iterable[Mapping[str, Any]]) -> str:
    """Its path, "" where none does, or none that is known. sites: the model's (see jobs.ml.sites.Site)."""
    enters = ENTERS.fullmatch(site)
    same = f"blocks.{int(enters[1]) - 1}.hook_resid_post" if enters else site
    return next((str(one["path"]) for one in sites if one["name"] == same and one.get("side") == "output"), "")


def below_base_model(path: str) -> str:
    """A module's path as sparsify writes it: below the base model."""
    prefix = max((prefix for prefix in PREFIXES if path.startswith(prefix)), key=len, default="")
    return path.removeprefix(prefix)


def layer_of(site: str) -> int | None:
    found = re.match(r"blocks\.(\d+)\.", site)
    return int(found[1]) if found else None
