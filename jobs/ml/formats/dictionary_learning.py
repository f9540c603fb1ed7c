"""dictionary_learning: config.json beside ae.pt, a state_dict of torch, which is read by weights_only alone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.ml.errors import Unusable
from jobs.ml.formats.facts import Config, Facts
from jobs.ml.formats.hooks import layer_of, site_of_module

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.ml.sae import Sae

LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "b_dec"}
PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


@dataclass(frozen=True)
class Kind:
    """A class of theirs."""

    architecture: str
    names: Mapping[str, str]  # our weights → their names
    turned: str  # which of ours they hold the other way round
    spare: tuple[str, ...] = ()
    one_threshold: bool = False  # for all latents
    centred: bool = True


KINDS = {
    "AutoEncoder": Kind("standard", LINEAR | {"b_dec": "bias"}, "W_dec"),
    "AutoEncoderNew": Kind("standard", LINEAR | {"b_dec": "decoder.bias"}, "W_dec", centred=False),
    "GatedAutoEncoder": Kind(
        "gated",
        LINEAR | {"b_enc": "gate_bias", "b_dec": "decoder_bias", "b_mag": "mag_bias", "r_mag": "r_mag"},
        "W_dec",
    ),
    "AutoEncoderTopK": Kind("topk", LINEAR, "W_dec", ("k", "threshold")),
    "BatchTopKSAE": Kind("jumprelu", LINEAR, "W_dec", ("k",), one_threshold=True),
    "MatryoshkaBatchTopKSAE": Kind("jumprelu", PLAIN, "W_enc", ("k", "group_sizes"), one_threshold=True),
    "JumpReluAutoEncoder": Kind("jumprelu", PLAIN | {"threshold": "threshold"}, "W_enc", centred=False),
}
LAYER = re.compile(r"(resid_pre|resid_post|mlp_out|attn_out)_layer_(\d+)")


def facts(folder: Path, place: str) -> Facts:
    whole = Config.read(folder / "config.json")
    config, buffer = whole.inner("trainer"), whole.inner("buffer")
    kind, io = kind_of(config), buffer.text("io") or "out"
    transcodes = io in ("in_to_out", "in_and_out")
    return Facts(
        "dictionary_learning",
        kind.architecture,
        config.count("activation_dim"),
        config.count("dict_size"),
        options={"k": config.count("k")} if kind.architecture == "topk" else {},
        centred=kind.centred,
        reads=sites(config, io),
        model_name=config.text("lm_name"),
        context_size=buffer.count("ctx_len") if buffer.values.get("ctx_len") else None,
        notes=("It reads what goes into a module, and rebuilds what that puts out.",) if transcodes else (),
        transcodes=transcodes,
    )


def kind_of(config: Config) -> Kind:
    name = config.text("dict_class")
    if name not in KINDS:
        raise Unusable(f"config.json: {name!r} is no dictionary that is read here.", f"Read are {', '.join(KINDS)}.")
    return KINDS[name]


def sites(config: Config, io: str) -> tuple[str, ...]:
    """A layer without a name is that of the residual stream; a name that is not known is no site."""
    name, layer = config.text("submodule_name"), config.values.get("layer")
    if io not in ("in", "out"):
        return ()
    if known := LAYER.search(name):
        return (f"blocks.{known[2]}.hook_{known[1]}",)
    site = site_of_module(name)
    if not name and isinstance(layer, int):
        site = f"blocks.{layer}.hook_resid_post"
    if io == "in":
        site = site.replace("resid_post", "resid_pre") if site.endswith("resid_post") else ""
    return (site,) if site else ()


def weights(folder: Path, facts: Facts) -> "dict[str, Tensor]":
    from jobs.ml.formats.tensors import read_torch

    kind = kind_of(Config.read(folder / "config.json").inner("trainer"))
    shapes = {**facts.shapes, kind.turned: facts.shapes[kind.turned][::-1]}
    wanted = {theirs: shapes[ours] for ours, theirs in kind.names.items()}
    if kind.one_threshold:
        wanted["threshold"] = ()
    found = read_torch(folder / "ae.pt", wanted, kind.spare)
    ours = {name: found[theirs] for name, theirs in kind.names.items()}
    ours[kind.turned] = ours[kind.turned].T
    if kind.one_threshold:  # below 0: none was measured, and then theirs counts what is positive, as ReLU does
        ours["threshold"] = found["threshold"].clamp_min(0).repeat(facts.width)
    return ours


def refusal(*, transcodes: bool, **_: Any) -> str:
    return "dictionary_learning has no place for the site that a transcoder writes." if transcodes else ""


def class_for(sae: "Sae") -> str:
    if sae.architecture == "standard":
        return "AutoEncoder" if sae.centred else "AutoEncoderNew"
    return {"topk": "AutoEncoderTopK", "gated": "GatedAutoEncoder", "jumprelu": "JumpReluAutoEncoder"}[sae.architecture]


def write(sae: "Sae", folder: Path, reads: tuple[str, ...], writes: tuple[str, ...], metadata: dict[str, Any]) -> None:
    import torch

    from jobs.ml import store
    from jobs.ml.formats.assemble import plain_bias

    name = class_for(sae)
    kind = KINDS[name]
    if kind.centred != sae.centred and sae.architecture != "jumprelu":
        raise Unusable(f"{name} takes b_dec off the input, this SAE does not.", "Choose another format.", "format")
    own = {key: value.detach().cpu() for key, value in sae.state_dict().items()}
    if sae.architecture == "jumprelu":
        own["b_enc"] = plain_bias(sae)
        own["threshold"] = own["threshold"].clamp_min(0)
    own[kind.turned] = own[kind.turned].T
    theirs = {kind.names[key]: value.contiguous().clone() for key, value in own.items()}
    k = sae.options().get("k")
    if k:
        theirs |= {"k": torch.tensor(k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    trainer = {
        "dict_class": name,
        "trainer_class": None,
        "activation_dim": sae.d_in,
        "dict_size": sae.width,
        **({"k": k} if k else {}),
        "layer": layer_of(reads[0]),
        "lm_name": metadata.get("model_name", ""),
        "submodule_name": reads[0],
    }
    if site := re.fullmatch(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|mlp_out|attn_out)", reads[0]):
        trainer["submodule_name"] = f"{site[2]}_layer_{site[1]}"
    buffer = {"d_submodule": sae.d_in, "io": "out", "ctx_len": metadata.get("context_size")}
    with store.replacing(folder) as temporary:
        temporary.mkdir()
        torch.save(theirs, temporary / "ae.pt")
        store.write_json(temporary / "config.json", {"trainer": trainer, "buffer": buffer})
