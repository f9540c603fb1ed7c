"""Llama Scope: hyperparams.json beside checkpoints/final.safetensors. JumpReLU with one threshold for all latents; its
inputs are scaled to a mean norm of sqrt(d_in), which is folded here as SAELens folds it, the threshold too.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from jobs.ml.errors import Unusable
from jobs.ml.formats.facts import Config, Facts
from jobs.ml.saelens_names import site_name

if TYPE_CHECKING:
    from torch import Tensor

LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"}


def facts(folder: Path, place: str) -> Facts:
    config = Config.read(folder / "hyperparams.json")
    read, written = config.text("hook_point_in"), config.text("hook_point_out")
    if written not in ("", read):
        raise Unusable(
            f"hyperparams.json: it is a transcoder from {read} to {written}, whose scales are not read here.",
            "Of Llama Scope, autoencoders are read.",
        )
    scale(config)
    site = site_name({"hook_name": read}, "") if read else ""
    return Facts(
        "llama_scope",
        "jumprelu",
        config.count("d_model"),
        config.count("d_sae"),
        centred=config.flag("apply_decoder_bias_to_pre_encoder", False),
        reads=(site,) if site else (),
        model_name="meta-llama/Llama-3.1-8B" if "Llama3_1-8B" in place else "",
        notes=("The scale of its inputs is taken into its weights.",),
    )


def scale(config: Config) -> float:
    norm = config.inner("dataset_average_activation_norm").number("in")
    if norm <= 0:
        raise Unusable(f"hyperparams.json: its inputs have the mean norm {norm:g}, which cannot be.")
    return config.count("d_model") ** 0.5 / norm


def weights(folder: Path, facts: Facts) -> "dict[str, Tensor]":
    import torch

    from jobs.ml.formats.tensors import read_safetensors

    config = Config.read(folder / "hyperparams.json")
    s, threshold = scale(config), config.number("jump_relu_threshold")
    shapes = {**facts.shapes, "W_dec": facts.shapes["W_dec"][::-1]}
    found = read_safetensors(folder / "checkpoints/final.safetensors", {LINEAR[ours]: shapes[ours] for ours in LINEAR})
    ours = {name: found[theirs] for name, theirs in LINEAR.items()}
    return ours | {
        "W_enc": ours["W_enc"] * s,
        "W_dec": ours["W_dec"].T / s,
        "b_dec": ours["b_dec"] / s,
        "threshold": torch.full((facts.width,), max(0.0, threshold * s)),
    }
