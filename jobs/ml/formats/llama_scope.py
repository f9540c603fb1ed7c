"""Llama Scope: hyperparams.json beside checkpoints/final.safetensors: JumpReLU on inputs scaled to a mean norm of
sqrt(d_in), which is folded here as SAELens folds it, with one threshold for all latents, that of unscaled activations.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.ml.errors import Unusable
from jobs.ml.formats.facts import Config, Facts, scale
from jobs.ml.saelens_names import site_name

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.ml.sae import Sae

LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"}
CONFIG, NORM = "hyperparams.json", "dataset_average_activation_norm"
MODELS = {"Llama3_1-8B": "meta-llama/Llama-3.1-8B"}


def facts(folder: Path, place: str) -> Facts:
    config = Config.read(folder / CONFIG)
    read, written = config.text("hook_point_in"), config.text("hook_point_out")
    if written not in ("", read):
        raise Unusable(
            f"{config.name}: it is a transcoder from {read} to {written}, whose scales are not read here.",
            "Of Llama Scope, autoencoders are read.",
        )
    if (function := config.text("act_fn") or "jumprelu") != "jumprelu" or config.flag("use_glu_encoder", False):
        what = "a gated encoder" if function == "jumprelu" else f"the activation {function!r}"
        raise Unusable(f"{config.name}: it has {what}, which is not read here.", "Of Llama Scope, jumprelu is read.")
    input_scale(config)
    site = site_name({"hook_name": read}, "") if read else ""
    return Facts(
        "llama_scope",
        "jumprelu",
        config.count("d_model"),
        config.count("d_sae"),
        centred=config.flag("apply_decoder_bias_to_pre_encoder", False),
        reads=(site,) if site else (),
        model_name=next((model for name, model in MODELS.items() if name in place), ""),
        notes=("The scale of its inputs is taken into its weights.",),
    )


def input_scale(config: Config) -> float:
    """Raises Unusable."""
    norms = config.inner(NORM)
    return scale(config.count("d_model"), norms.number("in"), f"{norms.name}: in")


def weights(folder: Path, facts: Facts) -> "dict[str, Tensor]":
    import torch

    from jobs.ml.formats.assemble import unweighed
    from jobs.ml.formats.tensors import read_safetensors

    config = Config.read(folder / CONFIG)
    shapes = {**facts.shapes, "W_dec": facts.shapes["W_dec"][::-1]}
    wanted = {LINEAR[ours]: shapes[ours] for ours in LINEAR}
    found = read_safetensors(folder / "checkpoints/final.safetensors", wanted)
    ours = {name: found[theirs] for name, theirs in LINEAR.items()}
    ours["W_dec"] = ours["W_dec"].T
    s = input_scale(config)
    threshold = torch.full((facts.width,), max(0.0, config.number("jump_relu_threshold") * s))
    if config.flag("sparsity_include_decoder_norm", False):  # a_i ||W_dec_i|| is what is compared with it
        threshold = unweighed(threshold, ours["W_dec"])
    return ours | {
        "W_enc": ours["W_enc"] * s,
        "W_dec": ours["W_dec"] / s,
        "b_dec": ours["b_dec"] / s,
        "threshold": threshold,
    }


def refusal(*, transcodes: bool, **_: Any) -> str:
    return "Llama Scope's transcoders are neither read nor written here." if transcodes else ""


def write(sae: "Sae", folder: Path, reads: tuple[str, ...], writes: tuple[str, ...], metadata: dict[str, Any]) -> None:
    """SAELens knows this layout of any width. Its one threshold is reached by the norms of the decoder
    rows: activations come in other units then, what they write does not change. Raises Unusable."""
    import torch

    from jobs.ml import store
    from jobs.ml.formats.assemble import plain_bias

    own = {name: value.detach().cpu() for name, value in sae.state_dict().items()} | {"b_enc": plain_bias(sae).cpu()}
    threshold = own.get("threshold", torch.zeros_like(own["b_enc"])).clamp_min(0)
    common, zeros = float(threshold.median()), int((threshold == 0).sum())
    if 0 < zeros < sae.width:
        said = f"{zeros:,} of {sae.width:,} latents have the threshold 0, the others more"
        raise Unusable(f"Llama Scope has one threshold for all latents: {said}.", "Choose another format.", "format")
    unit = (threshold / common if common else torch.ones_like(threshold))[:, None]  # of the new activations
    arrays = {
        LINEAR["W_enc"]: own["W_enc"] / unit,
        LINEAR["b_enc"]: own["b_enc"] / unit[:, 0],
        LINEAR["W_dec"]: (own["W_dec"] * unit).T,
        LINEAR["b_dec"]: own["b_dec"],
    }
    hook, norm = reads[0].replace(".hook_z", ".attn.hook_z"), sae.d_in**0.5
    config = {
        "hook_point_in": hook,
        "hook_point_out": hook,
        "d_model": sae.d_in,
        "d_sae": sae.width,
        "expansion_factor": sae.width / sae.d_in,
        "act_fn": "jumprelu",
        "jump_relu_threshold": common,
        "norm_activation": "dataset-wise",
        NORM: {"in": norm, "out": norm},  # so that nothing is scaled
        "sparsity_include_decoder_norm": False,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "use_glu_encoder": False,
    }
    with store.replacing(folder) as temporary:
        (temporary / "checkpoints").mkdir(parents=True)
        store.write_tensors(
            temporary / "checkpoints/final.safetensors", {name: value.numpy() for name, value in arrays.items()}
        )
        store.write_json(temporary / CONFIG, config)
