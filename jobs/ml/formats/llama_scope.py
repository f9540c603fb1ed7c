"""Llama Scope: JumpReLU on inputs scaled to a mean norm of sqrt(d_in), which is folded here as SAELens folds it. Two
layouts: hyperparams.json beside checkpoints/final.safetensors, with one threshold for all latents, that of unscaled
activations; and, since R1-Distill, config.json beside sae_weights.safetensors, with a threshold for each, that
of scaled activations, and the mean norm among the weights.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.ml.errors import Unusable
from jobs.ml.formats.facts import Config, Facts
from jobs.ml.saelens_names import site_name

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.ml.sae import Sae

LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"}
FIRST, LATER = "hyperparams.json", "config.json"
THRESHOLDS, NORM = "log_jumprelu_threshold", "dataset_average_activation_norm"
MODELS = {
    "Llama-Scope-R1-Distill": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "Llama3_1-8B": "meta-llama/Llama-3.1-8B",
}


def config_of(folder: Path) -> Config:
    return Config.read(folder / (FIRST if (folder / FIRST).is_file() else LATER))


def facts(folder: Path, place: str) -> Facts:
    config = config_of(folder)
    read, written = config.text("hook_point_in"), config.text("hook_point_out")
    if written not in ("", read):
        raise Unusable(
            f"{config.name}: it is a transcoder from {read} to {written}, whose scales are not read here.",
            "Of Llama Scope, autoencoders are read.",
        )
    if (function := config.text("act_fn") or "jumprelu") != "jumprelu" or config.flag("use_glu_encoder", False):
        what = "a gated encoder" if function == "jumprelu" else f"the activation {function!r}"
        raise Unusable(f"{config.name}: it has {what}, which is not read here.", "Of Llama Scope, jumprelu is read.")
    d_in = config.count("d_model")
    if config.name == FIRST:
        width = config.count("d_sae")
        scale(config, config.inner(NORM).number("in"))
    else:
        width = round(d_in * config.number("expansion_factor"))
    site = site_name({"hook_name": read}, "") if read else ""
    return Facts(
        "llama_scope",
        "jumprelu",
        d_in,
        width,
        centred=config.flag("apply_decoder_bias_to_pre_encoder", False),
        reads=(site,) if site else (),
        model_name=next((model for name, model in MODELS.items() if name in place), ""),
        notes=("The scale of its inputs is taken into its weights.",),
    )


def scale(config: Config, norm: float) -> float:
    """What the inputs are multiplied with, that their mean norm is sqrt(d_in)."""
    if not norm > 0:
        raise Unusable(f"{config.name}: its inputs have the mean norm {norm:g}, which cannot be.")
    return config.count("d_model") ** 0.5 / norm


def weights(folder: Path, facts: Facts) -> "dict[str, Tensor]":
    config = config_of(folder)
    shapes = {**facts.shapes, "W_dec": facts.shapes["W_dec"][::-1]}
    wanted = {LINEAR[ours]: shapes[ours] for ours in LINEAR}
    read = first_weights if config.name == FIRST else later_weights
    found, s, threshold = read(folder, config, wanted, facts.width)
    ours = {name: found[theirs] for name, theirs in LINEAR.items()}
    ours["W_dec"] = ours["W_dec"].T
    if config.flag("sparsity_include_decoder_norm", False):  # a_i ||W_dec_i|| is what is compared with it
        threshold = threshold / ours["W_dec"].norm(dim=1)
    return ours | {
        "W_enc": ours["W_enc"] * s,
        "W_dec": ours["W_dec"] / s,
        "b_dec": ours["b_dec"] / s,
        "threshold": threshold,
    }


Read = tuple[dict[str, "Tensor"], float, "Tensor"]  # tensors, scale of the inputs, thresholds [M] of scaled activations


def first_weights(folder: Path, config: Config, wanted: dict[str, tuple[int, ...]], width: int) -> Read:
    import torch

    from jobs.ml.formats.tensors import read_safetensors

    s = scale(config, config.inner(NORM).number("in"))
    threshold = max(0.0, config.number("jump_relu_threshold") * s)
    return read_safetensors(folder / "checkpoints/final.safetensors", wanted), s, torch.full((width,), threshold)


def later_weights(folder: Path, config: Config, wanted: dict[str, tuple[int, ...]], width: int) -> Read:
    from jobs.ml.formats.headers import safetensors_headers
    from jobs.ml.formats.tensors import read_safetensors

    path, norm = folder / "sae_weights.safetensors", f"{NORM}.{config.text('hook_point_in')}"
    there = safetensors_headers(path).get(norm)
    found = read_safetensors(path, wanted | {THRESHOLDS: (width,), norm: there.shape if there else ()})
    if found[norm].numel() != 1:
        raise Unusable(f"{path.name}: {norm} has the shape {list(found[norm].shape)}, not one number.")
    return found, scale(config, float(found[norm])), found[THRESHOLDS].exp()


def refusal(*, transcodes: bool, **_: Any) -> str:
    return "Llama Scope's transcoders are neither read nor written here." if transcodes else ""


def write(sae: "Sae", folder: Path, reads: tuple[str, ...], writes: tuple[str, ...], metadata: dict[str, Any]) -> None:
    """In the first layout, which SAELens knows of any width. Its one threshold is reached by the norms of the decoder
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
        store.write_json(temporary / FIRST, config)
