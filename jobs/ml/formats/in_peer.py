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
    """SAELens' own loader, given the files that are here where it would fetch them."""
    from sae_lens.loading import pretrained_sae_loaders as loaders

    d_in, width = np.load(folder / "params.npz")["w_enc"].shape
    own = {"d_in": d_in, "d_sae": width, "dtype": "float64", "normalize_activations": "none"}
    place = "google/gemma-scope-2b-pt-res", "layer_0/width_16k/average_l0_1"
    return of_loader(loaders, "gemma_2_sae_huggingface_loader", folder, place, own, x)


def llama_scope(folder: Path, x: Tensor) -> Answer:
    from sae_lens.loading import pretrained_sae_loaders as loaders

    said = json.loads((folder / "hyperparams.json").read_text())
    scale = said["d_model"] ** 0.5 / said["dataset_average_activation_norm"]["in"]
    place = "fnlp/Llama3_1-8B-Base-LXM-8x", "Llama3_1-8B-Base-L0M-8x"
    return of_loader(loaders, "llama_scope_sae_huggingface_loader", folder, place, {"dtype": "float64"}, x, scale)


def of_loader(
    loaders: Any, name: str, folder: Path, place: tuple[str, str], own: dict[str, Any], x: Tensor, scale: float = 1.0
) -> Answer:
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

    def here(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:
        return str(folder / f"{subfolder}/{filename}".replace(place[1], "").lstrip("/"))

    loaders.hf_hub_download = here
    config, weights, *_ = getattr(loaders, name)(*place, device="cpu", cfg_overrides=own)
    sizes = {key: config[key] for key in ("d_in", "d_sae", "apply_b_dec_to_input")}
    sae = JumpReLUSAE(JumpReLUSAEConfig(**sizes, dtype="float64", device="cpu"))
    sae.load_state_dict({key: value.double() for key, value in weights.items()})
    if scale != 1.0:
        sae.fold_activation_norm_scaling_factor(scale)
    return of_saelens(sae, x)


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
