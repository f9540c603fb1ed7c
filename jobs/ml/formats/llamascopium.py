"""Llamascopium, which was lm-saes: config.json beside sae_weights.safetensors, with the mean norms of what goes in and
comes out among the weights. The names of the tensors are W_E [D, M], W_D [M, D], before that (Llama Scope R1-Distill)
those of two linear layers.

a = s_in x W_E + b_E, x_hat = (f W_D + b_D) / s_out, s = sqrt(D) / mean norm; f is a where a_i ||W_D_i||, or a_i, is
above its threshold or among the k largest, and above 0. Where `apply_decoder_bias_to_pre_encoder` says so, b_D is
taken off s_in x.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.ml.errors import Unusable
from jobs.ml.formats import llama_scope
from jobs.ml.formats.facts import MOST_WIDTH, Config, Facts, scale
from jobs.ml.saelens_names import site_name

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS, NORM = "config.json", "sae_weights.safetensors", "dataset_average_activation_norm"
ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk"}
MODELS = {"Llama-Scope-R1-Distill": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"}
SCALED = "The scale of its inputs is taken into its weights."
UNFITTING = (
    "Llamascopium took the scale of the inputs into its weights and left the thresholds as they were: other latents "
    "may be active than when it was trained."
)


@dataclass(frozen=True)
class Naming:
    names: Mapping[str, str]  # our weights → theirs
    turned: str  # which of ours they hold the other way round
    log_threshold: str


LETTERS = Naming(
    {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"},
    "W_enc",
    "activation_function.log_jumprelu_threshold",
)
LINEAR = Naming(llama_scope.LINEAR, "W_dec", "log_jumprelu_threshold")


def facts(folder: Path, place: str) -> Facts:
    config = Config.read(folder / CONFIG)
    check_kind(config)
    architecture, folded = ARCHITECTURES[config.text("act_fn").lower()], is_folded(config)
    d_in, expansion = config.count("d_model"), config.number("expansion_factor")
    if not 0 < expansion <= MOST_WIDTH:
        raise config.wrong("expansion_factor", f"above 0, and {MOST_WIDTH:,} at most")
    read, written = (site_name({"hook_name": hook}, "") for hook in hooks(config))
    transcodes = written != read
    return Facts(
        "llamascopium",
        architecture,
        d_in,
        round(d_in * expansion),
        options={"k": config.count("top_k")} if architecture == "topk" else {},
        centred=config.flag("apply_decoder_bias_to_pre_encoder", False),
        weighted=weighted(config),
        transcodes=transcodes,
        reads=(read,) if read else (),
        writes=(written,) if transcodes else (),
        model_name=next((model for name, model in MODELS.items() if name in place), ""),
        notes=(SCALED,) * (not folded) + (UNFITTING,) * (folded and architecture == "jumprelu"),
    )


def check_kind(config: Config) -> None:
    """Raises Unusable."""
    if (kind := config.text("sae_type") or "sae") != "sae":
        raise Unusable(f"{CONFIG}: sae_type {kind!r} is not read here.", "Of Llamascopium, sae is read.")
    if config.flag("use_glu_encoder", False):
        raise Unusable(f"{CONFIG}: it has a gated encoder, which is not read here.")
    if (function := config.text("act_fn").lower()) not in ARCHITECTURES:
        said = f"{CONFIG}: it has the activation {function!r}, which is not read here"
        raise Unusable(f"{said}.", f"Of Llamascopium, {', '.join(ARCHITECTURES)} are read.")
    if (norm := config.text("norm_activation")) not in ("dataset-wise", "inference"):
        said = f"{CONFIG}: its inputs are normalised when it runs ({norm!r}), by what its files do not hold"
        raise Unusable(f"{said}.", "Read are dataset-wise, and inference, where that is taken into the weights.")


def is_folded(config: Config) -> bool:
    return config.text("norm_activation") == "inference"


def weighted(config: Config) -> bool:
    return config.flag("sparsity_include_decoder_norm", True)


def hooks(config: Config) -> tuple[str, str]:
    read = config.text("hook_point_in")
    return read, config.text("hook_point_out") or read


def weights(folder: Path, facts: Facts) -> "dict[str, Tensor]":
    import torch

    from jobs.ml.formats.assemble import unweighed
    from jobs.ml.formats.headers import safetensors_headers
    from jobs.ml.formats.tensors import read_safetensors

    config, path = Config.read(folder / CONFIG), folder / WEIGHTS
    headers = safetensors_headers(path)
    naming = LETTERS if "W_E" in headers else LINEAR
    shapes = {**facts.shapes, naming.turned: facts.shapes[naming.turned][::-1]}
    unbiased = not config.flag("use_decoder_bias", True)
    wanted = {theirs: shapes[ours] for ours, theirs in naming.names.items() if not (unbiased and ours == "b_dec")}
    if facts.architecture == "jumprelu":
        wanted[naming.log_threshold] = (facts.width,)
    norms = [f"{NORM}.{hook}" for hook in hooks(config)]
    measured = {} if is_folded(config) else {name: headers[name].shape if name in headers else () for name in norms}
    found = read_safetensors(path, wanted | measured, ignored=norms)
    ours = {name: found[theirs] for name, theirs in naming.names.items() if theirs in wanted}
    ours[naming.turned] = ours[naming.turned].T
    ours.setdefault("b_dec", torch.zeros(facts.shapes["b_dec"]))
    if facts.architecture == "jumprelu":
        threshold = found[naming.log_threshold].exp()
        ours["threshold"] = unweighed(threshold, ours["W_dec"]) if weighted(config) else threshold
    s_in, s_out = (measured_scale(facts.d_in, name, found[name]) if measured else 1.0 for name in norms)
    if facts.centred:  # b_D is taken off what is scaled by s_in
        ours["b_enc"] = ours["b_enc"] + (s_in / s_out - 1) * (ours["W_enc"] @ ours["b_dec"])
    return ours | {"W_enc": ours["W_enc"] * s_in, "W_dec": ours["W_dec"] / s_out, "b_dec": ours["b_dec"] / s_out}


def measured_scale(width: int, name: str, norm: "Tensor") -> float:
    """Raises Unusable."""
    if norm.numel() != 1:
        raise Unusable(f"{WEIGHTS}: {name} has the shape {list(norm.shape)}, not one number.")
    return scale(width, float(norm), f"{WEIGHTS}: {name}")
