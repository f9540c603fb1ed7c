"""SAEs as other libraries write them, made by hand, each with its library's formula for what it computes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from jobs.ml import formats
from jobs.ml.errors import CorruptData, Unusable, WithHint

D, M, K, N = 12, 40, 5, 64
Formula = Callable[[Tensor], tuple[Tensor, Tensor]]  # x [N, D] → codes, x_hat


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def inputs(d: int = D) -> Tensor:
    return torch.randn(N, d, generator=torch.Generator().manual_seed(7))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest one, as a part of the largest value."""
    return float((ours.detach() - theirs.detach()).abs().max() / theirs.detach().abs().max())


def uneven(rows: Tensor) -> Tensor:
    return rows * torch.linspace(0.2, 3.0, len(rows))[:, None]


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def topk(a: Tensor, k: int = K) -> Tensor:
    top = a.topk(k, dim=1)
    return torch.zeros_like(a).scatter(1, top.indices, top.values.relu())


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def changed(folder: Path, **values: Any) -> Path:
    """The same folder, with other values in its configuration."""
    [path] = folder.glob("*.json")
    write_json(path, json.loads(path.read_text()) | values)
    return folder


def refused(folder: Path, error: type[WithHint] | tuple[type[WithHint], ...] = (Unusable, CorruptData)) -> str:
    """What is said of an SAE that cannot be read."""
    with pytest.raises(error) as caught:
        formats.read(folder)
    return f"{caught.value} {caught.value.hint}"


def contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def saelens(folder: Path, architecture: str = "standard", version: str = "6.54.12", **config: Any) -> Formula:
    """W_dec with uneven rows."""
    w = {"W_enc": rand(D, M), "W_dec": uneven(rand(M, D, seed=1)), "b_enc": rand(M), "b_dec": rand(D)}
    if architecture == "jumprelu":
        w["threshold"] = rand(M, seed=2).abs()
    if architecture == "gated":
        w |= {"b_gate": w.pop("b_enc"), "b_mag": rand(M, seed=3), "r_mag": 0.3 * rand(M, seed=4)}
    own = {"k": K} if architecture in ("topk", "abstopk") else {}
    metadata = {"sae_lens_version": version, "model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"}
    whole = {
        "architecture": architecture, "d_in": D, "d_sae": M, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none", **own,
        "metadata": {"hook_head_index": None, "context_size": 128, "dataset_path": "pile", **metadata}, **config,
    }  # fmt: skip
    write_json(folder / "cfg.json", whole)
    save_file(contiguous(w), folder / "sae_weights.safetensors")
    centre = w["b_dec"] if whole["apply_b_dec_to_input"] else 0.0

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        if architecture == "gated":
            plain = (x - centre) @ w["W_enc"]
            f = (plain + w["b_gate"] > 0) * (plain * w["r_mag"].exp() + w["b_mag"]).relu()
            return f, f @ w["W_dec"] + w["b_dec"]
        a = (x - centre) @ w["W_enc"] + w["b_enc"]
        if architecture == "jumprelu":
            f = a.relu() * (a > w["threshold"])
        elif architecture == "topk" and whole.get("rescale_acts_by_decoder_norm"):
            f = topk(a * w["W_dec"].norm(dim=1))
            return f, f / w["W_dec"].norm(dim=1) @ w["W_dec"] + w["b_dec"]
        else:
            f = topk(a) if architecture == "topk" else a.relu()
        return f, f @ w["W_dec"] + w["b_dec"]

    return compute


def flat(folder: Path, scaled: bool = False, **config: Any) -> Formula:
    """SAELens before 6; scaled: with a factor for each code, applied before it is decoded."""
    w = {"W_enc": rand(D, M), "W_dec": uneven(rand(M, D, seed=1)), "b_enc": rand(M), "b_dec": rand(D)}
    factor = rand(M, seed=5).abs() if scaled else torch.ones(M)
    whole = {
        "architecture": "standard", "d_in": D, "d_sae": M, "dtype": "float32", "hook_point": "blocks.3.hook_resid_pre",
        "hook_layer": 3, "model_name": "gpt2-small", "normalize_activations": False, "activation_fn_str": "relu",
        "finetuning_scaling_factor": scaled, "context_size": 64, **config,
    }  # fmt: skip
    write_json(folder / "cfg.json", whole)
    save_file(contiguous(w | {"scaling_factor": factor}), folder / "sae_weights.safetensors")

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        a = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        f = topk(a) if whole["activation_fn_str"] == "topk" else a.relu()
        return f, (f * factor) @ w["W_dec"] + w["b_dec"]

    return compute


def sparsify(folder: Path, transcode: bool = False, **config: Any) -> Formula:
    w = {"encoder.weight": rand(M, D), "encoder.bias": rand(M), "W_dec": unit(rand(M, D, seed=1)), "b_dec": rand(D)}
    whole = {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": M, "k": K,
        "multi_topk": False, "skip_connection": transcode, "transcode": transcode, "d_in": D, **config,
    }  # fmt: skip
    if transcode:
        w["W_skip"] = 0.1 * rand(D, D, seed=6)
    write_json(folder / "cfg.json", whole)
    save_file(contiguous(w), folder / "sae.safetensors")

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        centred = x if transcode else x - w["b_dec"]
        f = topk((centred @ w["encoder.weight"].T + w["encoder.bias"]).relu())
        return f, f @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if transcode else 0.0)

    return compute


def dictionary_learning(folder: Path, cls: str = "AutoEncoderTopK", threshold: float = 0.4) -> Formula:
    w = {
        "encoder.weight": rand(M, D), "encoder.bias": rand(M), "decoder.weight": uneven(rand(M, D, seed=1)).T,
        "b_dec": rand(D), "k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(threshold),
    }  # fmt: skip
    if cls == "AutoEncoderTopK":
        w["decoder.weight"] = unit(w["decoder.weight"].T).T
    if cls in ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder"):
        name = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}[cls]
        w = {key: value for key, value in w.items() if key not in ("k", "threshold", "b_dec")} | {name: w["b_dec"]}
    if cls == "GatedAutoEncoder":
        w |= {"gate_bias": w.pop("encoder.bias"), "mag_bias": rand(M, seed=3), "r_mag": 0.3 * rand(M, seed=4)}
    if cls in ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"):
        w = {
            "W_enc": w["encoder.weight"].T, "b_enc": w["encoder.bias"], "W_dec": w["decoder.weight"].T,
            "b_dec": w["b_dec"], "k": w["k"], "threshold": w["threshold"], "group_sizes": torch.tensor([10, 30]),
        }  # fmt: skip
    if cls == "JumpReluAutoEncoder":
        w = {key: w[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")} | {"threshold": rand(M, seed=2).abs()}
    trainer = {
        "dict_class": cls, "activation_dim": D, "dict_size": M, "k": K, "layer": 3,
        "lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "resid_post_layer_3",
    }  # fmt: skip
    write_json(folder / "config.json", {"trainer": trainer, "buffer": {"d_submodule": D, "io": "out", "ctx_len": 128}})
    torch.save(contiguous(w), folder / "ae.pt")
    enc, dec = (w["W_enc"], w["W_dec"]) if "W_enc" in w else (w["encoder.weight"].T, w["decoder.weight"].T)
    bias = next(w[name] for name in ("b_dec", "bias", "decoder.bias", "decoder_bias") if name in w)
    centre = 0.0 if cls in ("AutoEncoderNew", "JumpReluAutoEncoder") else bias

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        plain = (x - centre) @ enc
        if cls == "GatedAutoEncoder":
            f = (plain + w["gate_bias"] > 0) * (plain * w["r_mag"].exp() + w["mag_bias"]).relu()
        else:
            a = (plain + w.get("encoder.bias", w.get("b_enc", 0.0))).relu()
            f = topk(a) if cls == "AutoEncoderTopK" else a * (a > w.get("threshold", 0.0))
        return f, f @ dec + bias

    return compute


def jump_weights() -> dict[str, Tensor]:
    return {
        "w_enc": rand(D, M), "w_dec": uneven(rand(M, D, seed=1)), "b_enc": rand(M), "b_dec": rand(D),
        "threshold": rand(M, seed=2).abs(),
    }  # fmt: skip


def jump(w: dict[str, Tensor], x: Tensor, s: float = 1.0) -> tuple[Tensor, Tensor]:
    a = x @ (w["w_enc"] * s) + w["b_enc"]
    f = a.relu() * (a > w["threshold"])
    return f, f @ (w["w_dec"] / s) + w["b_dec"] / s


def gemma_scope(folder: Path, place: str = "layer_3/width_40/average_l0_9") -> Formula:
    w = jump_weights()
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in w.items()})
    return (lambda x: embedded(w, x)) if "embedding" in place else lambda x: jump(w, x)


def embedded(w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    f, _ = jump(w, x / D**0.5)
    return f, f @ w["w_dec"] * D**0.5 + w["b_dec"]


def gemma_scope_2(folder: Path, skip: bool = False) -> Formula:
    w = jump_weights() | ({"affine_skip_connection": rand(D, D, seed=8)} if skip else {})
    config = {"architecture": "jump_relu", "model_name": "gemma-3-270m-pt", "hf_hook_point_in": "model.layers.5.output"}
    if skip:
        config |= {
            "hf_hook_point_in": "model.layers.5.pre_feedforward_layernorm.output",
            "hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output",
            "affine_connection": True,
        }
    write_json(folder / "config.json", config)
    save_file(contiguous(w), folder / "params.safetensors")

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        f, x_hat = jump(w, x)
        return f, x_hat + (x @ w["affine_skip_connection"] if skip else 0.0)

    return compute


def llama_scope(folder: Path, norm: float = 1.7, threshold: float = 0.3) -> Formula:
    w = jump_weights()
    s = D**0.5 / norm
    hyperparams = {
        "d_model": D, "d_sae": M, "hook_point_in": "blocks.15.hook_mlp_out", "hook_point_out": "blocks.15.hook_mlp_out",
        "jump_relu_threshold": threshold, "dataset_average_activation_norm": {"in": norm, "out": norm},
    }  # fmt: skip
    write_json(folder / "hyperparams.json", hyperparams)
    names = {"encoder.weight": "w_enc", "encoder.bias": "b_enc", "decoder.weight": "w_dec", "decoder.bias": "b_dec"}
    tensors = {theirs: w[ours].T if w[ours].ndim == 2 else w[ours] for theirs, ours in names.items()}
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_file(contiguous(tensors), folder / "checkpoints/final.safetensors")
    w["threshold"] = torch.full((M,), threshold * s)
    return lambda x: jump(w, x, s)


def llamascopium_linear(folder: Path, norm: float = 1.7, uneven_rows: bool = False) -> Formula:
    """Of R1-Distill. With even rows the library itself and SAELens say the same; else what is compared with the
    thresholds is weighed by the norms of the rows, and only the library itself does that."""
    w = jump_weights()
    w["w_dec"] = w["w_dec"] if uneven_rows else unit(w["w_dec"])
    hook = "blocks.15.hook_resid_post"
    config = {
        "sae_type": "sae", "d_model": D, "expansion_factor": M / D, "act_fn": "jumprelu",
        "norm_activation": "dataset-wise", "use_decoder_bias": True, "use_glu_encoder": False, "top_k": K,
        "hook_point_in": hook, "hook_point_out": hook, "sparsity_include_decoder_norm": True,
    }  # fmt: skip
    write_json(folder / "config.json", config)
    names = {"encoder.weight": "w_enc", "encoder.bias": "b_enc", "decoder.weight": "w_dec", "decoder.bias": "b_dec"}
    tensors = {theirs: w[ours].T if w[ours].ndim == 2 else w[ours] for theirs, ours in names.items()}
    tensors["log_jumprelu_threshold"] = w["threshold"].log()
    tensors[f"dataset_average_activation_norm.{hook}"] = torch.tensor(norm)
    save_file(contiguous(tensors), folder / "sae_weights.safetensors")
    w["threshold"] = w["threshold"] / w["w_dec"].norm(dim=1)
    return lambda x: jump(w, x, D**0.5 / norm)


def llamascopium(
    folder: Path, act_fn: str = "jumprelu", to: str = "blocks.15.hook_resid_post", norm_out: float = 1.7, **config: Any
) -> Formula:
    """As Llamascopium 2 writes it, with its own formula; to: another site makes it a transcoder."""
    w = jump_weights()
    hook = "blocks.15.hook_resid_post"
    whole = {
        "sae_type": "sae", "d_model": D, "expansion_factor": M / D, "act_fn": act_fn, "dtype": "torch.float32",
        "device": "cpu", "norm_activation": "dataset-wise", "use_decoder_bias": True, "use_glu_encoder": False,
        "top_k": K, "hook_point_in": hook, "hook_point_out": to, "sparsity_include_decoder_norm": True,
        "use_triton_kernel": False, "jumprelu_threshold_window": 2.0, **config,
    }  # fmt: skip
    write_json(folder / "config.json", whole)
    tensors = {"W_E": w["w_enc"], "b_E": w["b_enc"], "W_D": w["w_dec"], "b_D": w["b_dec"]}
    if not whole["use_decoder_bias"]:
        w["b_dec"] = torch.zeros_like(tensors.pop("b_D"))
    if act_fn == "jumprelu":
        tensors["activation_function.log_jumprelu_threshold"] = w["threshold"].log()
    tensors |= {f"dataset_average_activation_norm.{at}": torch.tensor(n) for at, n in ((to, norm_out), (hook, 1.7))}
    scaled = whole["norm_activation"] == "dataset-wise"
    s_in, s_out = (D**0.5 / float(tensors[f"dataset_average_activation_norm.{at}"]) for at in (hook, to))
    if not scaled:  # what lies there then is whatever was in memory
        tensors |= {name: torch.tensor(float("nan")) for name in tensors if name.startswith("dataset")}
        s_in = s_out = 1.0
    save_file(contiguous(tensors), folder / "sae_weights.safetensors", {"version": "2.0.0b34"})
    by = w["w_dec"].norm(dim=1) if whole["sparsity_include_decoder_norm"] else torch.ones(M)

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        off = w["b_dec"] if whole.get("apply_decoder_bias_to_pre_encoder") else 0.0
        a = ((x * s_in - off) @ w["w_enc"] + w["b_enc"]) * by
        f = {"relu": a.relu(), "topk": topk(a), "jumprelu": a.relu() * (a > w["threshold"])}[act_fn] / by
        return f, (f @ w["w_dec"] + w["b_dec"]) / s_out

    return compute


LETTERS: dict[str, Callable[[Path], Formula]] = {
    "llamascopium": llamascopium,
    "llamascopium-topk": lambda folder: llamascopium(folder, "topk"),
    "llamascopium-topk-plain": lambda folder: llamascopium(folder, "topk", sparsity_include_decoder_norm=False),
    "llamascopium-relu": lambda folder: llamascopium(folder, "relu", use_decoder_bias=False),
    "llamascopium-folded": lambda folder: llamascopium(folder, norm_activation="inference"),
    "llamascopium-transcoder": lambda folder: llamascopium(folder, to="blocks.15.hook_mlp_out", norm_out=0.4),
    "llamascopium-centred": lambda folder: llamascopium(
        folder, to="blocks.15.hook_mlp_out", norm_out=0.4, apply_decoder_bias_to_pre_encoder=True
    ),
}
MADE: dict[str, Callable[[Path], Formula]] = {
    "saelens-standard": lambda folder: saelens(folder, "standard"),
    "saelens-uncentred": lambda folder: saelens(folder, "standard", apply_b_dec_to_input=False),
    "saelens-gated": lambda folder: saelens(folder, "gated"),
    "saelens-jumprelu": lambda folder: saelens(folder, "jumprelu"),
    "saelens-topk": lambda folder: saelens(folder, "topk"),
    "saelens-topk-rescaled": lambda folder: saelens(folder, "topk", rescale_acts_by_decoder_norm=True),
    "saelens-flat": flat,
    "saelens-flat-scaled": lambda folder: flat(folder, scaled=True),
    "saelens-flat-topk": lambda folder: flat(folder, activation_fn_str="topk", activation_fn_kwargs={"k": K}),
    "sparsify": sparsify,
    "sparsify-transcoder": lambda folder: sparsify(folder, transcode=True),
    **{
        f"dictionary_learning-{cls}": lambda folder, cls=cls: dictionary_learning(folder, cls)
        for cls in (
            "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
            "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder",
        )
    },
    "dictionary_learning-unmeasured": lambda folder: dictionary_learning(folder, "BatchTopKSAE", threshold=-1.0),
    "gemma_scope": gemma_scope,
    "gemma_scope_2": gemma_scope_2,
    "gemma_scope_2-skip": lambda folder: gemma_scope_2(folder, skip=True),
    "llama_scope": llama_scope,
    "llamascopium-r1_distill": llamascopium_linear,
    "llamascopium-uneven": lambda folder: llamascopium_linear(folder, uneven_rows=True),
    **LETTERS,
}  # fmt: skip
