"""sparsify (eai-sparsify): TopK alone, one folder for each hookpoint, which is the path of a module."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.ml.errors import Unusable
from jobs.ml.formats.facts import Config, Facts
from jobs.ml.formats.hooks import site_of_module

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.ml.sae import Sae

WEIGHTS = "sae.safetensors"


def facts(folder: Path, place: str) -> Facts:
    config = Config.read(folder / "cfg.json")
    activation, transcodes = config.text("activation") or "topk", config.flag("transcode", False)
    if activation != "topk" or config.flag("signed", False):
        which = "signed latents" if config.flag("signed", False) else f"the activation {activation!r}"
        raise Unusable(f"cfg.json: it has {which}, which is not read here.", "Read is topk.")
    d_in = config.count("d_in")
    named = config.values.get("num_latents")  # 0 counts as missing
    latents = config.count("num_latents") if named else d_in * config.count("expansion_factor", 32)
    hookpoint = next((part for part in reversed(place.strip("/").split("/")) if not part.startswith("seed")), "")
    site = (site_of_module(hookpoint),) if site_of_module(hookpoint) else ()
    notes = ("It reads what goes into the module, and rebuilds what that puts out.",) if transcodes else ()
    return Facts(
        "sparsify",
        "topk",
        d_in,
        latents,
        options={"k": config.count("k", 32)},
        centred=not transcodes,
        skip=config.flag("skip_connection", False),
        transcodes=transcodes,
        reads=() if transcodes else site,
        writes=site if transcodes else (),
        notes=notes,
    )


def weights(folder: Path, facts: Facts) -> "dict[str, Tensor]":
    from jobs.ml.formats.tensors import read_safetensors

    wanted = dict(facts.shapes)
    wanted |= {"encoder.weight": wanted.pop("W_enc"), "encoder.bias": wanted.pop("b_enc")}
    found = read_safetensors(folder / WEIGHTS, wanted)
    return found | {"W_enc": found.pop("encoder.weight"), "b_enc": found.pop("encoder.bias")}


def refusal(*, transcodes: bool, d_in: int, d_out: int, **_: Any) -> str:
    return "" if d_in == d_out else f"sparsify rebuilds as many dimensions as it reads, not {d_out:,} from {d_in:,}."


def write(sae: "Sae", folder: Path, reads: tuple[str, ...], writes: tuple[str, ...], metadata: dict[str, Any]) -> None:
    """The folder is to be named after the hookpoint."""
    from jobs.ml import store
    from jobs.ml.formats.assemble import alike

    arrays = {name: value.detach().cpu().numpy() for name, value in sae.state_dict().items()}
    arrays["encoder.weight"], arrays["encoder.bias"] = arrays.pop("W_enc"), arrays.pop("b_enc")
    config = {
        "activation": "topk",
        "expansion_factor": max(1, sae.width // sae.d_in),
        "normalize_decoder": alike(sae.W_dec),
        "num_latents": sae.width,
        "k": sae.options()["k"],
        "multi_topk": False,
        "skip_connection": sae.W_skip is not None,
        "transcode": bool(writes),
        "d_in": sae.d_in,
    }
    if sae.centred == bool(writes):
        raise Unusable("sparsify takes b_dec off the input of autoencoders, never off that of transcoders.")
    with store.replacing(folder) as temporary:
        temporary.mkdir()
        store.write_tensors(temporary / WEIGHTS, arrays)
        store.write_json(temporary / "cfg.json", config)
