"""Run by a Python that has the peer: python -I in_peer.py FORMAT FOLDER X OUT

Loads the folder as the peer itself does, encodes and decodes the vectors of X, writes codes and reconstructions to OUT.
Knows nothing of miStudio. Everything is computed in float64: what is compared is the file, not the order of sums.
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Answer = tuple[Tensor, Tensor]  # codes [N, M], x_hat [N, D_out]


def saelens(folder: Path, x: Tensor) -> Answer:
    from sae_lens import SAE

    return of_saelens(SAE.load_from_disk(folder, dtype="float64"), x)


def of_saelens(sae: Any, x: Tensor) -> Answer:
    """hook_z comes with its heads side by side here, where SAELens wants them apart."""
    sae.turn_off_forward_pass_hook_z_reshaping()
    codes = sae.encode(x)
    return codes, sae.decode(codes) if getattr(sae, "W_skip", None) is None else sae(x)


def gemma_scope(folder: Path, x: Tensor) -> Answer:
    from sae_lens.loading import pretrained_sae_loaders as loaders

    own = {"dtype": "float64", "normalize_activations": "none"}
    if (folder / "params.npz").is_file():
        d_in, width = np.load(folder / "params.npz")["w_enc"].shape
        place = "google/gemma-scope-2b-pt-res", "layer_0/width_16k/average_l0_1"
        sae = of_loader("gemma_2_sae_huggingface_loader", folder, place, own | {"d_in": d_in, "d_sae": width})
        return of_saelens(sae, x)
    weights = load_file(folder / "params.safetensors")
    loaders.get_safetensors_tensor_shapes = lambda *_: {name: list(value.shape) for name, value in weights.items()}
    kind = "transcoder" if "hf_hook_point_out" in json.loads((folder / "config.json").read_text()) else "resid_post"
    place = "google/gemma-scope-2-270m-pt", f"{kind}/layer_0_width_16k_l0_small"
    return of_saelens(of_loader("gemma_3_sae_huggingface_loader", folder, place, own), x)


def llama_scope(folder: Path, x: Tensor) -> Answer:
    said = json.loads((folder / "hyperparams.json").read_text())
    place = "fnlp/Llama3_1-8B-Base-LXM-8x", "Llama3_1-8B-Base-L0M-8x"
    sae = of_loader("llama_scope_sae_huggingface_loader", folder, place, {"dtype": "float64"})
    return of_scaled(sae, said["d_model"], said["dataset_average_activation_norm"]["in"], x)


def llamascopium(folder: Path, x: Tensor) -> Answer:
    """With the names of linear layers, which are all that SAELens knows."""
    said, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "sae_weights.safetensors")
    norm = float(weights[f"dataset_average_activation_norm.{said['hook_point_in']}"])
    place = "fnlp/Llama-Scope-R1-Distill", "800M-Slimpajama-0-OpenR1-Math-220k/L0R"
    own = {"dtype": "float64", "d_sae": len(weights["encoder.bias"])}
    sae = of_loader("llama_scope_r1_distill_sae_huggingface_loader", folder, place, own)
    return of_scaled(sae, said["d_model"], norm, x)


def of_scaled(sae: Any, width: int, norm: float, x: Tensor) -> Answer:
    """Codes as of decoder rows with norm 1: the files' units are their own."""
    sae.fold_activation_norm_scaling_factor(width**0.5 / norm)
    codes, x_hat = of_saelens(sae, x)
    return codes * sae.W_dec.norm(dim=1), x_hat


def of_loader(name: str, folder: Path, place: tuple[str, str], own: dict[str, Any]) -> Any:
    """SAELens' own loader, given the files that are here where it would fetch them."""
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.registry import get_sae_class

    def here(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:
        return str(folder / f"{subfolder}/{filename}".replace(place[1], "").lstrip("/"))

    loaders.hf_hub_download = here
    config, weights, *_ = getattr(loaders, name)(*place, device="cpu", cfg_overrides=own)
    kind, config_of_kind = get_sae_class(config["architecture"])
    sizes = {key: config[key] for key in ("d_in", "d_sae", "d_out", "apply_b_dec_to_input") if key in config}
    sae = kind(config_of_kind(**sizes, dtype="float64", device="cpu"))
    sae.load_state_dict({key: value.double() for key, value in weights.items()})
    return sae


def sparsify(folder: Path, x: Tensor) -> Answer:
    from sparsify import SparseCoder

    sae = SparseCoder.load_from_disk(folder).double()
    out = sae(x)
    codes = x.new_zeros(len(x), sae.num_latents).scatter(1, out.latent_indices, out.latent_acts)
    return codes, out.sae_out


def dictionary_learning(folder: Path, x: Tensor) -> Answer:
    from dictionary_learning.utils import load_dictionary

    sae, _ = load_dictionary(str(folder), device="cpu")
    codes = sae.double().encode(x)
    return codes, sae.decode(codes)


PEERS: dict[str, tuple[str, Callable[[Path, Tensor], Answer]]] = {
    "saelens": ("sae-lens", saelens),
    "gemma_scope": ("sae-lens", gemma_scope),
    "llama_scope": ("sae-lens", llama_scope),
    "llamascopium": ("sae-lens", llamascopium),
    "sparsify": ("eai-sparsify", sparsify),
    "dictionary_learning": ("dictionary-learning", dictionary_learning),
}


@torch.no_grad()
def main(name: str, folder: str, given: str, out: str) -> None:
    package, compute = PEERS[name]
    codes, x_hat = compute(Path(folder), load_file(given)["x"].double())
    tensors = {"codes": codes.detach().double().contiguous(), "x_hat": x_hat.detach().double().contiguous()}
    save_file(tensors, out, {"package": package, "version": version(package)})


if __name__ == "__main__":
    main(*sys.argv[1:])
