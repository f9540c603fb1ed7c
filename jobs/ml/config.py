"""How an SAE is trained: every number that decides the result."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.architectures.options import OPTIONS, Value
from jobs.ml.errors import WithHint

# How a language model's weights are held while it is used; the last two by bitsandbytes.
PRECISIONS = ("float32", "bfloat16", "float16", "int8", "int4")
UNSETTLED_ROWS = 8  # sequences per forward pass where their number was neither given nor tried
SELECTIONS = ("float32", "bfloat16")
AUTO = "auto"  # the fastest here of those that lose next to nothing, see calibration.py


class BadConfig(WithHint):
    """`field` says which number is wrong."""

    def __init__(self, field: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.field = field


@dataclass(frozen=True)
class TrainConfig:
    """Steps and tokens are of the whole run; None is a rule that depends on the other numbers. Raises
    BadConfig.
    """

    width: int  # latents
    tokens: int  # to train on, special ones not counted; rounded up to whole batches
    architecture: str = "topk"
    options: Mapping[str, Value] = field(default_factory=dict)  # of the architecture; what is left out is its preset
    batch_tokens: int = 4096
    micro_batch_tokens: int | None = None  # gradients of a batch are gathered in parts of this many tokens
    lr: float | None = None  # 2e-4 / sqrt(width / 2^14)
    lr_warmup_steps: int | None = None  # 1000, at most a twentieth of the steps
    lr_decay_share: float = 0.2  # of the steps, at the end, linearly to 0
    beta1: float = 0.9
    beta2: float | None = None  # 0.999; in runs of fewer than 6000 steps less, see squares_beta
    grad_clip: float = 1.0  # norm over all parameters; thresholds have one of their own
    dead_after_tokens: int | None = None  # a tenth of the run, at most 10 million
    selection: str = "float32"  # the precision in which the active latents are chosen, or "bfloat16"
    seed: int = 0
    log_every: int = 10  # steps

    def __post_init__(self) -> None:
        if architecture := ARCHITECTURES.get(self.architecture):
            given = {name: value for name, value in self.options.items() if value is not None}
            object.__setattr__(self, "options", {**architecture.presets, **given})
        for name, holds, what in self.rules():
            if not holds:
                raise BadConfig(name, f"{name} must be {what}, not {getattr(self, name)}.")
        self.check_options()

    def check_options(self) -> None:
        architecture = ARCHITECTURES[self.architecture]
        for name, value in self.options.items():
            if name not in architecture.presets:
                own = ", ".join(architecture.presets)
                raise BadConfig(name, f"{name} is no option of {architecture.label}: it has {own}.")
            if wrong := OPTIONS[name].wrong(value):
                raise BadConfig(name, f"{name} must be {wrong}, not {value}.")
        if int(k := self.options.get("k", 0)) > self.width:
            raise BadConfig(
                "k", f"k must be from 1 to the width, {self.width}, not {k}.", "Lower k or raise the width."
            )

    def rules(self) -> list[tuple[str, bool, str]]:
        """(field, does it hold, what it must be)"""
        micro, lr = self.micro_batch_tokens, self.lr
        return [
            ("architecture", self.architecture in ARCHITECTURES, " or ".join(ARCHITECTURES)),
            ("width", self.width >= 1, "at least 1"),
            ("tokens", self.tokens >= 1, "at least 1"),
            ("batch_tokens", self.batch_tokens >= 1, "at least 1"),
            ("micro_batch_tokens", micro is None or micro >= 1, "at least 1"),
            ("lr", lr is None or 0 < lr < math.inf, "a number above 0"),
            ("lr_warmup_steps", (self.lr_warmup_steps or 0) >= 0, "at least 0"),
            ("lr_decay_share", 0 <= self.lr_decay_share <= 1, "from 0 to 1"),
            ("beta1", 0 <= self.beta1 < 1, "from 0 to below 1"),
            ("beta2", 0 <= (self.beta2 or 0) < 1, "from 0 to below 1"),
            ("grad_clip", self.grad_clip > 0, "above 0"),
            ("selection", self.selection in SELECTIONS, " or ".join(SELECTIONS)),
            ("dead_after_tokens", (self.dead_after_tokens or 1) >= 1, "at least 1"),
            ("seed", 0 <= self.seed < 2**63, "a whole number from 0"),
            ("log_every", self.log_every >= 1, "at least 1"),
        ]

    @property
    def steps(self) -> int:
        return -(-self.tokens // self.batch_tokens)

    @property
    def peak_lr(self) -> float:
        """Gao et al. 2024: the best rate falls with the square root of the width."""
        return self.lr if self.lr is not None else 2e-4 / math.sqrt(self.width / 2**14)

    @property
    def warmup(self) -> int:
        """Steps until the learning rate is at its peak."""
        return min(1000, self.steps // 20) if self.lr_warmup_steps is None else self.lr_warmup_steps

    @property
    def squares_beta(self) -> float:
        """Adam's mean of squared gradients is one over a sixth of the steps, 100 at least and 1000 at most: gradients
        shrink fast in a short run."""
        return 1 - 1 / min(1000, max(100, self.steps // 6)) if self.beta2 is None else self.beta2

    @property
    def dead_window(self) -> int:
        """Tokens without firing after which a latent counts as dead."""
        return self.dead_after_tokens or min(10_000_000, max(self.batch_tokens, self.tokens // 10))

    def part_of(self, n: int) -> int:
        """How many of a batch of n rows are computed at once."""
        return min(self.micro_batch_tokens or n, n)

    def lr_at(self, step: int) -> float:
        """Linear from 0 to the peak, flat, linear to 0."""
        rising = (step + 1) / (self.warmup + 1)
        falling = (self.steps - step) / max(1.0, self.steps * self.lr_decay_share)
        return self.peak_lr * min(1.0, rising, falling)

    def risen(self, step: int) -> float:
        """The share of the sparsity penalty's warm-up that is done."""
        return min(1.0, (step + 1) / max(1.0, self.steps * float(self.options["sparsity_warmup_share"])))

    def warmed(self, coefficient: str, step: int) -> float:
        """An option that is the weight of a sparsity penalty, which rises from 0 at first."""
        return float(self.options[coefficient]) * self.risen(step)

    def decisive(self) -> dict[str, Any]:
        """What two runs must share for one to go on from the other's checkpoint."""
        return {name: value for name, value in asdict(self).items() if name not in {"micro_batch_tokens", "log_every"}}


@dataclass(frozen=True)
class Member:
    """One SAE of a run: which sites it reads, side by side, and which it rebuilds; none: those it reads."""

    config: TrainConfig
    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        return self.writes or self.reads

    def check(self) -> None:
        """Raises BadConfig where the architecture does not go with the sites."""
        architecture = ARCHITECTURES[self.config.architecture]
        if architecture.transcodes != bool(self.writes):
            needs = "needs a site to write" if architecture.transcodes else "writes the sites that it reads"
            raise BadConfig("writes", f"{architecture.label} {needs}.")
        if architecture.spans != (len(self.reads) > 1):
            reads = "several sites" if architecture.spans else "one site; a crosscoder reads several"
            raise BadConfig("reads", f"{architecture.label} reads {reads}.")
        if len(self.writes) > 1 or len(set(self.reads)) < len(self.reads):
            raise BadConfig("writes", "Name each site once, and one to write.")
