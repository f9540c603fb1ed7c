"""Names of sites in other libraries → ours, where they say enough."""

import re

BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)$")
WITHIN = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.([a-z_]+)$")
ATTENTION = ("attn", "attention", "self_attn", "self_attention")
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
PREFIXES = ("model.", "transformer.", "gpt_neox.", "model.decoder.", "bert.", "distilbert.")


def site_of_module(path: str) -> str:
    """Of what the module at a path in a transformers model puts out, "" where it is none of the usual ones."""
    if block := BLOCK.search(path):
        return f"blocks.{block[1]}.hook_resid_post"
    if within := WITHIN.search(path):
        kind = "hook_mlp_out" if within[2] == "mlp" else "hook_attn_out" if within[2] in ATTENTION else ""
        return f"blocks.{within[1]}.{kind}" if kind else ""
    return "hook_embed" if path.rpartition(".")[2] in EMBEDDINGS else ""


def below_base_model(path: str) -> str:
    """A module's path as sparsify writes it: below the base model."""
    prefix = max((prefix for prefix in PREFIXES if path.startswith(prefix)), key=len, default="")
    return path.removeprefix(prefix)


def layer_of(site: str) -> int | None:
    found = re.match(r"blocks\.(\d+)\.", site)
    return int(found[1]) if found else None
