"""What the peers compute from their files, by their documented formulas, in numpy and in float64: for where the peer
itself is not installed. Shares no code with what reads and writes the files, so that it can disagree.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Answer = tuple[np.ndarray, np.ndarray]  # codes [N, M], x_hat [N, D_out]
Arrays = dict[str, np.ndarray]


def saelens(folder: Path, x: np.ndarray) -> Answer:
    """a = (x - b_dec) W_enc + b_enc; x_hat = f W_dec + b_dec, + x W_skip^T where there is one."""
    config, w = json.loads((folder / "cfg.json").read_text()), wide(load_file(folder / "sae_weights.safetensors"))
    kind = config["architecture"]
    plain = (x - w["b_dec"] if config["apply_b_dec_to_input"] else x) @ w["W_enc"]
    if kind == "gated":
        f = (plain + w["b_gate"] > 0) * relu(plain * np.exp(w["r_mag"]) + w["b_mag"])
        return f, f @ w["W_dec"] + w["b_dec"]
    a = plain + w["b_enc"]
    if kind in ("topk", "abstopk"):
        f = largest(a, np.abs(a) if kind == "abstopk" else a, config["k"])
        f = f if kind == "abstopk" else relu(f)
    else:
        f = relu(a) * (a > w.get("threshold", 0.0))
    return f, f @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if "W_skip" in w else 0.0)


def sparsify(folder: Path, x: np.ndarray) -> Answer:
    config, w = json.loads((folder / "cfg.json").read_text()), wide(load_file(folder / "sae.safetensors"))
    a = relu((x if config["transcode"] else x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"])
    f = largest(a, a, config["k"])
    return f, f @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if "W_skip" in w else 0.0)


def dictionary_learning(folder: Path, x: np.ndarray) -> Answer:
    import torch

    cls = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    found = torch.load(folder / "ae.pt", map_location="cpu", weights_only=True)
    w = wide({name: tensor.numpy() for name, tensor in found.items()})
    if cls == "JumpReluAutoEncoder":
        a = x @ w["W_enc"] + w["b_enc"]
        f = relu(a * (a > w["threshold"]))
        return f, f @ w["W_dec"] + w["b_dec"]
    names = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
    bias = w[names.get(cls, "b_dec")]
    plain = (x if cls == "AutoEncoderNew" else x - bias) @ w["encoder.weight"].T
    if cls == "GatedAutoEncoder":
        f = (plain + w["gate_bias"] > 0) * relu(plain * np.exp(w["r_mag"]) + w["mag_bias"])
    else:
        a = relu(plain + w["encoder.bias"])
        f = largest(a, a, int(w["k"])) if cls == "AutoEncoderTopK" else a
    return f, f @ w["decoder.weight"].T + bias


def gemma_scope(folder: Path, x: np.ndarray) -> Answer:
    with np.load(folder / "params.npz", allow_pickle=False) as arrays:
        w = wide(dict(arrays))
    a = x @ w["w_enc"] + w["b_enc"]
    f = relu(a) * (a > w["threshold"])
    return f, f @ w["w_dec"] + w["b_dec"]


def llama_scope(folder: Path, x: np.ndarray) -> Answer:
    """a = s x W_enc + b_enc, s = sqrt(d) / norm. Codes as of decoder rows with norm 1: files have other units."""
    config = json.loads((folder / "hyperparams.json").read_text())
    w = wide(load_file(folder / "checkpoints/final.safetensors"))
    s = config["d_model"] ** 0.5 / config["dataset_average_activation_norm"]["in"]
    a = s * x @ w["encoder.weight"].T + w["encoder.bias"]
    f = relu(a) * (a > config["jump_relu_threshold"] * s)
    x_hat = (f @ w["decoder.weight"].T + w["decoder.bias"]) / s
    return f * np.linalg.norm(w["decoder.weight"], axis=0) / s, x_hat


def wide(arrays: Arrays) -> Arrays:
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def relu(a: np.ndarray) -> np.ndarray:
    return np.maximum(a, 0.0)


def largest(a: np.ndarray, by: np.ndarray, k: int) -> np.ndarray:
    """`a` where it is among the k of its row with the largest `by`, else 0."""
    places = np.argpartition(-by, k - 1, axis=1)[:, :k]
    kept = np.zeros_like(a)
    np.put_along_axis(kept, places, np.take_along_axis(a, places, axis=1), axis=1)
    return kept


FORMULAS: dict[str, Callable[[Path, np.ndarray], Any]] = {
    "saelens": saelens,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "gemma_scope": gemma_scope,
    "llama_scope": llama_scope,
}
