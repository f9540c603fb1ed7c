"""SAEs on disk in the layout of SAELens 6: cfg.json beside sae_weights.safetensors.

What SAELens has no name for (TopK transcoders, crosscoders) is written in the same layout under a name of our own,
which it refuses rather than misreads.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jobs.ml import store
from jobs.ml.architectures import class_of
from jobs.ml.errors import CorruptData, Unusable, WithHint
from jobs.ml.sae import Sae
from jobs.ml.saelens_names import KINDS, VERSION, hook_of, site_name


def save_sae(
    sae: Sae, folder: Path | str, *, reads: Sequence[str], writes: Sequence[str] = (), **metadata: Any
) -> None:
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
    if sae.architecture == "gated":
        arrays["b_gate"] = arrays.pop("b_enc")
    with store.replacing(Path(folder)) as temporary:
        temporary.mkdir()
        store.write_tensors(temporary / "sae_weights.safetensors", arrays)
        store.write_json(temporary / "cfg.json", configuration(sae, reads, writes, metadata))


def configuration(sae: Sae, reads: Sequence[str], writes: Sequence[str], metadata: dict[str, Any]) -> dict[str, Any]:
    kind = KINDS[sae.architecture, bool(writes), sae.W_skip is not None]
    own: dict[str, Any] = {"d_out": sae.d_out} if writes else {}
    if sae.architecture in ("topk", "abstopk", "crosscoder"):
        own |= {**sae.options(), "rescale_acts_by_decoder_norm": False}
    hooks = hook_of(reads[0])
    if writes:
        hooks |= {f"{name}_out": value for name, value in hook_of(writes[0]).items() if name != "model_class_name"}
    if len(reads) > 1:
        hooks["hook_names"] = list(reads)
    return {
        "architecture": kind,
        "d_in": sae.d_in,
        "d_sae": sae.width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.centred,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if reads[0].endswith("hook_z") else "none",  # a single head is flat
        **own,
        "metadata": {
            "sae_lens_version": VERSION,
            "sae_lens_training_version": None,
            **hooks,
            **metadata,
        },
    }


def load_sae(folder: Path | str, device: str = "cpu") -> Sae:
    """Raises ValueError where the folder holds something that is not read here."""
    folder = Path(folder)
    if not (folder / "cfg.json").is_file():
        raise CorruptData(f"{folder} has no cfg.json: it is not the folder of an SAE.")
    config = store.read_json(folder / "cfg.json")
    if config.get("normalize_activations", "none") != "none":
        raise Unusable("this SAE normalises its inputs at run time: it cannot be read.")
    kind = next((kind for kind, name in KINDS.items() if name == config["architecture"]), None)
    if kind is None:
        raise Unusable(f"{config['architecture']!r} is no architecture that is read here: {', '.join(KINDS.values())}.")
    architecture, _, skip = kind
    cls = class_of(architecture)
    sae = cls(
        config["d_in"],
        config["d_sae"],
        d_out=config.get("d_out"),
        centred=config.get("apply_b_dec_to_input", True),
        skip=skip,
        folded=not config.get("rescale_acts_by_decoder_norm", False),
        **{option: config[option] for option in cls.TAKES if option in config},
    )
    arrays = store.read_tensors(folder / "sae_weights.safetensors")
    arrays["W_enc"] = arrays["W_enc"].T
    if architecture == "gated":
        arrays["b_enc"] = arrays.pop("b_gate")
    sae.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return sae.eval().requires_grad_(False).to(device)


def sites_of(folder: Path | str) -> tuple[list[str], list[str]]:
    """Our names of the sites that the SAE in the folder reads, and of those that it writes where they are others."""
    metadata = store.read_json(Path(folder) / "cfg.json")["metadata"]
    reads = metadata.get("hook_names") or [site_name(metadata, "")]
    return reads, [site_name(metadata, "_out")] if metadata.get("hook_name_out") else []
