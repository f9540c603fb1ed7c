"""What can be set for some architectures: one table for the engine, forms and commands. No torch."""

import math
from dataclasses import dataclass

Value = int | float | str


@dataclass(frozen=True)
class Option:
    label: str
    help: str
    kind: type[Value]
    low: float = 0  # at least
    high: float = math.inf  # at most
    above: bool = False  # the low end is left out
    choices: tuple[str, ...] = ()

    def wrong(self, value: object) -> str:
        """What it must be, where the value is not that."""
        if self.choices:
            return "" if value in self.choices else f"one of {', '.join(self.choices)}"
        numeric = isinstance(value, int if self.kind is int else (int, float)) and not isinstance(value, bool)
        if numeric and self.low <= value <= self.high and not (self.above and value == self.low):  # type: ignore[operator]
            return "" if math.isfinite(value) else "a finite number"  # type: ignore[arg-type]
        what = "a whole number" if self.kind is int else "a number"
        least = f"above {self.low:g}" if self.above else f"from {self.low:g}"
        return f"{what} {least}" + (f" to {self.high:g}" if self.high < math.inf else "")


OPTIONS = {
    "k": Option("k", "Latents that may be active on a token; BatchTopK and Matryoshka: on average.", int, 1),
    "aux_coefficient": Option("AuxK coefficient", "Weight of the loss that revives dead latents; 0: off.", float),
    "levels": Option("Levels", "Nested dictionaries: all latents, the first half, the first quarter …", int, 1, 12),
    "l1_coefficient": Option("L1 coefficient", "Weight of the sparsity penalty. 1 to 20 is usual.", float),
    "gate_coefficient": Option(
        "Gate coefficient", "Weight of the gate's own error and its penalty. 1 in the paper.", float, above=True
    ),
    "l0_loss": Option(
        "L0 loss", "quadratic reaches a target; tanh and step have a price for each active latent.", str,
        choices=("quadratic", "tanh", "step"),
    ),
    "l0_coefficient": Option("L0 coefficient", "Weight of the sparsity penalty.", float),
    "target_l0": Option("Target L0", "Mean active latents per token, for the quadratic loss.", float, above=True),
    "bandwidth": Option(
        "Bandwidth", "How near to its threshold a pre-activation must be to move it.", float, above=True
    ),
    "initial_threshold": Option("First threshold", "Where the thresholds of all latents begin.", float),
    "ste_to_input": Option(
        "Slope to inputs", "1: what moves a threshold also moves the pre-activations near it (Anthropic). 0: DeepMind.",
        int, 0, 1,
    ),
    "dead_coefficient": Option(
        "Dead coefficient", "Weight of the loss that brings dead latents back to their thresholds.", float
    ),
    "sparsity_warmup_share": Option(
        "Sparsity warm-up", "Share of the steps over which the sparsity penalty rises from 0, or the target L0 falls.",
        float, 0, 1,
    ),
    "p_end": Option("Last p", "The penalty's exponent goes from 1 down to this.", float, 0, 1, above=True),
    "anneal_from": Option("Anneal from", "Share of the steps after which the exponent begins to fall.", float, 0, 1),
}  # fmt: skip
