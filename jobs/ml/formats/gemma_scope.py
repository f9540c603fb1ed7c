"""Gemma Scope: params.npz (Gemma 2), or params.safetensors beside config.json (Gemma 3): JumpReLU, b_dec never taken
off the input. Of the first, only the names of repository and folders tell which site it reads.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.ml.errors import Unusable
from jobs.ml.formats.facts import Config, Facts
from jobs.ml.formats.headers import Headers, npz_headers, safetensors_headers
from jobs.ml.site_names import EMBED

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.ml.sae import Sae

NAMES = {"W_enc": "w_enc", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
SKIP = "affine_skip_connection"
HOOKS = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "hook_z"}
REPOSITORY = re.compile(r"gemma-scope-(\w+)-(pt|it)(?:-(res|mlp|att|transcoder))?")
WHERE = re.compile(r"(?:.*/)?(?:layer_(\d+)|embedding(?=/width_))(?:/.*)?")  # the last folder that says it
TWO = (
    (re.compile(r"model\.layers\.(\d+)\.output"), "blocks.{}.hook_resid_post"),
    (re.compile(r"model\.layers\.(\d+)\.self_attn\.o_proj\.input"), "blocks.{}.hook_z"),
    (re.compile(r"model\.layers\.(\d+)\.post_feedforward_layernorm\.output"), "blocks.{}.hook_mlp_out"),
    (re.compile(r"(model\.[\w.]+)\.output"), "module:{}"),
    (re.compile(r"(model\.[\w.]+)\.input"), "module:{}:input"),
)
SCALED = "Trained on embeddings divided by the root of their width: the scale is taken into its weights."


def headers(folder: Path) -> Headers:
    npz = folder / "params.npz"
    return npz_headers(npz) if npz.is_file() else safetensors_headers(folder / "params.safetensors")


def facts(folder: Path, place: str) -> Facts:
    found = headers(folder)
    w_enc, w_dec = found.get("w_enc"), found.get("w_dec")
    if w_enc is None or w_dec is None or len(w_enc.shape) != 2 or len(w_dec.shape) != 2:
        there = ", ".join(sorted(found)[:8]) or "nothing"
        raise Unusable(f"There are no w_enc and w_dec of two dimensions: there is {there}.")
    sizes = w_enc.shape[0], w_enc.shape[1], w_dec.shape[1]
    npz = (folder / "params.npz").is_file()
    return one(place, *sizes) if npz else two(Config.read(folder / "config.json"), *sizes, SKIP in found)


def one(place: str, d_in: int, width: int, d_out: int) -> Facts:
    repository, where = REPOSITORY.search(place), WHERE.fullmatch(place)
    size, tuning, kind = repository.groups() if repository else ("", "", "")
    layer, transcodes = where[1] if where else "", kind == "transcoder"
    embedding = layer is None
    site = EMBED if embedding else f"blocks.{layer}.{HOOKS[kind]}" if layer and kind in HOOKS else ""
    return Facts(
        "gemma_scope",
        "jumprelu",
        d_in,
        width,
        d_out,
        centred=False,
        transcodes=transcodes,
        reads=(site,) if site else (),
        writes=(f"blocks.{layer}.hook_mlp_out",) if transcodes and layer else (),
        model_name=f"google/gemma-2-{size}" + ("-it" if tuning == "it" else "") if repository else "",
        dataset="monology/pile-uncopyrighted" if repository else "",
        context_size=1024 if repository else None,
        notes=(SCALED,) if embedding else (),
    )


def two(config: Config, d_in: int, width: int, d_out: int, skip: bool) -> Facts:
    if config.text("architecture") != "jump_relu":
        raise Unusable(f"config.json: the architecture {config.text('architecture')!r} is not read here: jump_relu is.")
    read, written = site_of(config.text("hf_hook_point_in")), site_of(config.text("hf_hook_point_out"))
    transcodes = bool(written) and written != read
    name = hub_name(config.text("model_name"))
    return Facts(
        "gemma_scope",
        "jumprelu",
        d_in,
        width,
        d_out,
        centred=False,
        skip=skip,
        transcodes=transcodes,
        reads=(read,) if read else (),
        writes=(written,) if transcodes else (),
        model_name=name,
    )


def hub_name(name: str) -> str:
    """As SAELens corrects it: some files say gemma-v3, and the smallest model has no -pt on the hub."""
    name = name.replace("-v3", "-3")
    name = name.removesuffix("-pt") if "270m" in name else name
    return name if "/" in name or not name else f"google/{name}"


def site_of(hook: str) -> str:
    matches = ((pattern.fullmatch(hook), ours) for pattern, ours in TWO)
    return next((ours.format(match[1]) for match, ours in matches if match), "")


def weights(folder: Path, facts: Facts) -> "dict[str, Tensor]":
    from jobs.ml.formats.tensors import read_npz, read_safetensors

    shapes = {**facts.shapes, "W_enc": facts.shapes["W_enc"][::-1]}
    wanted = {theirs: shapes[ours] for ours, theirs in NAMES.items()}
    if facts.skip:
        wanted[SKIP] = shapes["W_skip"][::-1]
    npz = folder / "params.npz"
    found = read_npz(npz, wanted) if npz.is_file() else read_safetensors(folder / "params.safetensors", wanted)
    ours = {name: found[theirs] for name, theirs in NAMES.items()}
    ours["W_enc"] = ours["W_enc"].T
    if facts.skip:
        ours["W_skip"] = found[SKIP].T
    if facts.reads == (EMBED,):
        ours |= {"W_enc": ours["W_enc"] / facts.d_in**0.5, "W_dec": ours["W_dec"] * facts.d_in**0.5}
    return ours


def refusal(*, transcodes: bool, **_: Any) -> str:
    return "Gemma Scope's npz has no place for the site that a transcoder writes." if transcodes else ""


def write(sae: "Sae", folder: Path, reads: tuple[str, ...], writes: tuple[str, ...], metadata: dict[str, Any]) -> None:
    import numpy as np
    import torch

    from jobs.ml import store
    from jobs.ml.formats.assemble import plain_bias

    own = dict(sae.state_dict()) | {"b_enc": plain_bias(sae), "W_enc": sae.W_enc.T}
    own["threshold"] = own.get("threshold", torch.zeros_like(sae.b_enc)).clamp_min(0)
    arrays = {theirs: own[ours].detach().cpu().contiguous().numpy() for ours, theirs in NAMES.items()}
    with store.replacing(folder) as temporary:
        temporary.mkdir()
        np.savez(temporary / "params.npz", **arrays)
