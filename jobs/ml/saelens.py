"""SAEs on disk in the layout of SAELens 6: cfg.json beside sae_weights.safetensors."""

from pathlib import Path
from typing import Any

import torch

from jobs.ml import store
from jobs.ml.errors import CorruptData, Unusable, WithHint
from jobs.ml.sae import Sae, build
from jobs.ml.site_names import head_of, module_of, module_site

VERSION = "6.54.12"  # readers take a file without one for an older, flat format
HUGGING_FACE = "AutoModelForCausalLM"  # the class by which SAELens reads a transformers model without TransformerLens


def save_sae(sae: Sae, folder: Path | str, *, site: str, **metadata: Any) -> None:
    """Replaces the folder as a whole. The SAE must be folded; metadata: model_name, dataset_path,
    context_size ...

    Raises ValueError.
    """
    if not sae.is_folded:
        raise WithHint("only a folded SAE is saved: others would need the scale of their inputs to be read.")
    if not all(torch.isfinite(parameter).all() for parameter in sae.parameters()):
        raise WithHint("the SAE has weights that are not finite numbers.")
    arrays = {name: value.detach().cpu().numpy() for name, value in sae.state_dict().items()}
    arrays["W_enc"] = arrays["W_enc"].T  # SAELens: [D, M]
    with store.replacing(Path(folder)) as temporary:
        temporary.mkdir()
        store.write_tensors(temporary / "sae_weights.safetensors", arrays)
        store.write_json(temporary / "cfg.json", configuration(sae, site, metadata))


def configuration(sae: Sae, site: str, metadata: dict[str, Any]) -> dict[str, Any]:
    topk = {**sae.options(), "rescale_acts_by_decoder_norm": False} if sae.architecture == "topk" else {}
    return {
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if site.endswith("hook_z") else "none",  # a single head is flat
        **topk,
        "metadata": {
            "sae_lens_version": VERSION,
            "sae_lens_training_version": None,
            **hook_of(site),
            **metadata,
        },
    }


def load_sae(folder: Path | str, device: str = "cpu") -> Sae:
    """Raises ValueError where the folder holds something that is not read here."""
    folder = Path(folder)
    if not (folder / "cfg.json").is_file():
        raise CorruptData(f"{folder} has no cfg.json: it is not the folder of an SAE.")
    config = store.read_json(folder / "cfg.json")
    if config.get("normalize_activations", "none") != "none" or not config.get("apply_b_dec_to_input", True):
        raise Unusable("this SAE normalises its inputs at run time or does not centre them: it cannot be read.")
    folded = not config.get("rescale_acts_by_decoder_norm", False)
    sae = build(config["architecture"], config["d_in"], config["d_sae"], config.get("k"), folded=folded)
    arrays = store.read_tensors(folder / "sae_weights.safetensors")
    arrays["W_enc"] = arrays["W_enc"].T
    sae.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return sae.eval().requires_grad_(False).to(device)


def hook_of(site: str) -> dict[str, Any]:
    """How SAELens finds the same tensor: by TransformerLens' name of it, or by the module that puts it out in the
    transformers model. It has no name for what goes into a module: there ours stands.
    """
    module, head = module_of(site), head_of(site)
    if module and module[1] == "output":
        return {"hook_name": module[0], "hook_head_index": None, "model_class_name": HUGGING_FACE}
    name, index = head or (site, None)
    if not module:
        name = name.replace(".hook_z", ".attn.hook_z")
    return {"hook_name": name, "hook_head_index": index}


def site_of(folder: Path | str) -> str:
    """Our name of the site that the SAE in the folder reads."""
    metadata = store.read_json(Path(folder) / "cfg.json")["metadata"]
    if metadata.get("model_class_name") == HUGGING_FACE:
        return module_site(metadata["hook_name"], "output")
    name: str = metadata["hook_name"].replace(".attn.hook_z", ".hook_z")
    head = metadata.get("hook_head_index")
    return name if head is None else f"{name}.{head}"
