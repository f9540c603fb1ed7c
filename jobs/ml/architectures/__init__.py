"""The architectures that are trained here. A new one is a file in this folder and a line in the table.

The table needs no torch: forms and commands read it too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from jobs.ml.architectures.options import Value

if TYPE_CHECKING:
    from jobs.ml.sae import Sae


@dataclass(frozen=True)
class Architecture:
    label: str
    path: str  # module.Class in this folder
    presets: Mapping[str, Value]  # its own options, and what they are where nothing else is said
    transcodes: bool = False  # it rebuilds another site than the one it reads
    skip: bool = False  # by a linear map beside the latents, too
    spans: bool = False  # it reads several sites side by side


AUX = 1 / 32  # Gao et al. 2024
TOPK: dict[str, Value] = {"k": 32, "aux_coefficient": AUX}
L1: dict[str, Value] = {"l1_coefficient": 5.0, "sparsity_warmup_share": 0.3, "aux_coefficient": 0.0}
JUMP: dict[str, Value] = {
    "l0_loss": "quadratic", "l0_coefficient": 1.0, "target_l0": 32.0, "bandwidth": 0.05, "initial_threshold": 0.01,
    "ste_to_input": 0, "dead_coefficient": 3e-6, "sparsity_warmup_share": 0.3, "aux_coefficient": 0.0,
}  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = {
    "topk": Architecture("TopK", "topk.TopK", TOPK),
    "batchtopk": Architecture("BatchTopK", "batch_topk.BatchTopK", TOPK),
    "matryoshka": Architecture("Matryoshka BatchTopK", "matryoshka.Matryoshka", TOPK | {"levels": 5}),
    "abstopk": Architecture("AbsTopK", "abs_topk.AbsTopK", TOPK),
    "jumprelu": Architecture("JumpReLU", "jumprelu.JumpReLU", JUMP),
    "standard": Architecture("ReLU + L1", "standard.Standard", L1),
    "gated": Architecture("Gated", "gated.Gated", L1 | {"gate_coefficient": 0.15}),
    "p_anneal": Architecture(
        "p-anneal", "p_anneal.PAnneal", L1 | {"sparsity_warmup_share": 0.05, "p_end": 0.2, "anneal_from": 0.2}
    ),
    "crosscoder": Architecture("Crosscoder", "crosscoder.Crosscoder", TOPK, spans=True),
    # Dunefsky et al. 2024, Transcoders find interpretable LLM feature circuits, arXiv:2406.11944; with a skip
    # connection: Paulo et al. 2025, Transcoders beat sparse autoencoders for interpretability, arXiv:2501.18823.
    "transcoder": Architecture("Transcoder", "topk.TopK", TOPK, transcodes=True),
    "skip_transcoder": Architecture("Skip transcoder", "topk.TopK", TOPK, transcodes=True, skip=True),
}


def class_of(name: str) -> "type[Sae]":
    """Raises ValueError for an architecture that does not exist."""
    if name not in ARCHITECTURES:
        raise ValueError(f"{name!r} is no architecture: there are {', '.join(ARCHITECTURES)}.")
    module, _, cls = ARCHITECTURES[name].path.partition(".")
    found: type[Sae] = getattr(import_module(f"{__name__}.{module}"), cls)
    return found


def build(name: str, d_in: int, width: int, *, d_out: int | None = None, **options: Any) -> "Sae":
    """Before its training. Options that the architecture does not take are left out. Raises ValueError."""
    cls, architecture = class_of(name), ARCHITECTURES[name]
    taken = {option: options[option] for option in cls.TAKES if option in options}
    return cls(d_in, width, d_out=d_out, centred=not architecture.transcodes, skip=architecture.skip, **taken)
