"""SAELens: cfg.json beside sae_weights.safetensors; since 6 with metadata, before that flat."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.ml.errors import Unusable, printable
from jobs.ml.formats.facts import Config, Facts
from jobs.ml.saelens_names import KINDS, site_name

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.ml.sae import Sae

OWN = ("topk_transcoder", "topk_skip_transcoder", "crosscoder")  # our names, which SAELens refuses
SCALES = ("scaling_factor", "finetuning_scaling_factor")  # of the codes, before 6
NORMALISED = (
    "Fold it with SAELens, where the scale is known: sae.fold_activation_norm_scaling_factor(factor), then save_model."
)
RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}


def facts(folder: Path, place: str) -> Facts:
    config = Config.read(folder / "cfg.json")
    return of_flat(config) if before_six(config) else of_six(config, config.inner("metadata"))


def before_six(config: Config) -> bool:
    version = config.inner("metadata").text("sae_lens_version") or config.text("sae_lens_version")
    major = re.match(r"\d+", version)
    return major is None or int(major[0]) < 6


def of_six(config: Config, metadata: Config) -> Facts:
    name = config.text("architecture")
    kind = next((kind for kind, known in KINDS.items() if known == name), None)
    if kind is None:
        hint = f"Read are {', '.join(KINDS.values())}."
        raise Unusable(f"cfg.json: {name!r} is no architecture that is read here.", hint)
    check_unscaled(config.text("normalize_activations"))
    architecture, transcodes, skip = kind
    options: dict[str, Any] = {}
    if architecture in ("topk", "abstopk", "crosscoder"):
        options["k"] = config.count("k")
    if architecture == "crosscoder":
        options["parts"] = parts_of(config)
    reads, writes = sites(metadata)
    return Facts(
        "saelens",
        architecture,
        config.count("d_in"),
        config.count("d_sae"),
        config.count("d_out") if transcodes else 0,
        options,
        config.flag("apply_b_dec_to_input", not transcodes),
        skip,
        config.flag("rescale_acts_by_decoder_norm", False),
        transcodes,
        reads,
        writes,
        metadata.text("model_name"),
        metadata.text("dataset_path"),
        metadata.count("context_size") if metadata.values.get("context_size") else None,
    )


def of_flat(config: Config) -> Facts:
    """Before 6 every key stands side by side, and an activation function is named beside the architecture."""
    config = Config({RENAMED.get(name, name): value for name, value in config.values.items()}, config.name)
    normalised = config.values.get("normalize_activations")
    check_unscaled("" if normalised in (None, False) else "yes" if normalised is True else str(normalised)[:60])
    architecture, function = config.text("architecture") or "standard", config.text("activation_fn") or "relu"
    options: dict[str, Any] = {}
    if function == "topk" and architecture in ("standard", "topk"):
        architecture, options = "topk", {"k": config.inner("activation_fn_kwargs").count("k")}
    elif function != "relu" or architecture not in ("standard", "gated", "jumprelu"):
        said = f"cfg.json: {architecture} with {function} is of an old version of SAELens, and not read here"
        raise Unusable(f"{said}.", "Read are standard, gated, jumprelu and topk.")
    reads, _ = sites(config)
    return Facts(
        "saelens",
        architecture,
        config.count("d_in"),
        config.count("d_sae"),
        options=options,
        centred=config.flag("apply_b_dec_to_input", True),
        reads=reads,
        model_name=config.text("model_name"),
        dataset=config.text("dataset_path"),
        context_size=config.count("context_size") if config.values.get("context_size") else None,
        notes=("Written by SAELens before 6, in its flat format.",),
    )


def check_unscaled(normalised: str) -> None:
    if normalised not in ("", "none"):
        said = f"cfg.json: its inputs are normalised when it runs ({normalised}), by what its files do not hold"
        raise Unusable(f"{said}.", NORMALISED)


def parts_of(config: Config) -> tuple[int, ...]:
    parts = config.values.get("parts")
    if not isinstance(parts, list) or not all(isinstance(n, int) and n > 0 for n in parts):
        raise config.wrong("parts", "a list of widths")
    return tuple(parts)


def sites(metadata: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read, and written where they are others; empty where the file names none."""
    several = metadata.values.get("hook_names")
    if isinstance(several, list) and all(isinstance(name, str) for name in several):
        return tuple(printable(name)[:120] for name in several), ()
    found = []
    for side in ("", "_out"):
        index = metadata.values.get(f"hook_head_index{side}")
        if index is not None and (not isinstance(index, int) or index < 0):
            raise metadata.wrong(f"hook_head_index{side}", "the number of a head")
        named = metadata.text(f"hook_name{side}")
        found.append((printable(site_name(metadata.values, side))[:120],) if named else ())
    return found[0], found[1]


def weights(folder: Path, facts: Facts) -> "dict[str, Tensor]":
    from jobs.ml.formats.tensors import read_safetensors

    wanted = dict(facts.shapes)
    wanted["W_enc"] = wanted["W_enc"][::-1]
    if facts.architecture == "gated":
        wanted["b_gate"] = wanted.pop("b_enc")
    scales = SCALES if before_six(Config.read(folder / "cfg.json")) else ()
    found = read_safetensors(folder / "sae_weights.safetensors", wanted, scales)
    found["W_enc"] = found["W_enc"].T
    if facts.architecture == "gated":
        found["b_enc"] = found.pop("b_gate")
    for name in SCALES:
        if name in found:
            if found[name].shape not in ((), (facts.width,)):
                raise Unusable(f"{name} has the shape {list(found[name].shape)}, not one number a latent.")
            found["W_dec"] = found["W_dec"] * found.pop(name).reshape(-1, 1)
    return found


def refusal(*, architecture: str, transcodes: bool, **_: Any) -> str:
    kind = KINDS.get((architecture, transcodes, False))
    if kind is None or kind in OWN:
        what = f"{architecture} transcoder" if transcodes else architecture
        return f"SAELens has no {what}" + ("; sparsify has." if architecture == "topk" else ".")
    return ""


def write(sae: "Sae", folder: Path, reads: tuple[str, ...], writes: tuple[str, ...], metadata: dict[str, Any]) -> None:
    from jobs.ml.saelens import save_sae

    save_sae(sae, folder, reads=reads, writes=writes, **metadata)
