"""Training an SAE on a stream of activations: a generator of ticks, stopped by no longer asking for the next
one.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jobs.ml.activations import ActivationStream
from jobs.ml.cached_activations import CachedActivations
from jobs.ml.config import TrainConfig
from jobs.ml.errors import WithHint
from jobs.ml.sae import TINY, Fit, Sae, build, geometric_median, input_scale, revive

REFRESH = 16  # steps between looks at which latents are dead: that takes a host sync on a GPU


class Diverged(WithHint):
    pass


@dataclass(frozen=True)
class Tick:
    """Comes after every step, and while activations are gathered for the next one."""

    step: int  # steps done
    steps: int
    tokens: int  # tokens seen
    metrics: dict[str, float] = field(default_factory=dict)  # only after every `log_every`th step, and the last


class Trainer:
    """The state of a run. Everything random happens before the first step, so there is no generator to
    save.
    """

    def __init__(self, config: TrainConfig, stream: ActivationStream | CachedActivations, device: str = "cpu") -> None:
        """Raises BadConfig, ValueError."""
        self.config, self.stream, self.device = config, stream, device
        self.sae: Sae = build(config.architecture, stream.site.width, config.width, config.k).to(device)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=0.0, betas=(config.beta1, config.beta2), fused=True)
        self.scale = 0.0  # of the inputs; 0 until it has been estimated
        self.step = 0
        self.stopped = False  # ended before the last step, by choice
        self.seconds = 0.0  # spent in training, over all attempts
        self.silent = torch.zeros(config.width, dtype=torch.long, device=device)  # tokens since each latent fired
        self.dead = torch.zeros(config.width, dtype=torch.bool, device=device)  # as of the last look
        self.dead_latents = self.dead.nonzero().flatten()
        self.bad_step = torch.full((), -1, dtype=torch.long, device=device)  # first one whose loss was not finite

    @property
    def finished(self) -> bool:
        return self.stopped or self.step >= self.config.steps

    @property
    def tokens(self) -> int:
        return self.step * self.config.batch_tokens

    def run(self) -> Iterator[Tick]:
        """Raises Diverged, NonFiniteActivations."""
        while not self.finished:
            started = time.monotonic()
            for _ in self.stream.prepare(self.step):
                yield self.tick()
            x = self.stream.batch(self.step)
            if self.step == 0:
                self.begin(x)
            metrics = self.update(x * self.scale)
            self.seconds += time.monotonic() - started
            yield self.tick(metrics)

    def tick(self, metrics: dict[str, float] | None = None) -> Tick:
        return Tick(self.step, self.config.steps, self.tokens, metrics or {})

    def begin(self, x: Tensor) -> None:
        """Scale from the first chunk of activations, centre from the first batch; neither is used up by
        it.
        """
        self.scale = input_scale(self.stream.sample())
        self.sae.initialise(self.config.seed, geometric_median(x * self.scale))

    def update(self, x: Tensor) -> dict[str, float]:
        """One optimizer step on the scaled batch x [B, D]; metrics where this step is to be logged."""
        if self.step % REFRESH == 0:
            self.dead = self.silent >= self.config.dead_window
            self.dead_latents = self.dead.nonzero().flatten()
        lr = self.config.lr_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        sums = self.gather_gradients(x)
        norm = torch.nn.utils.clip_grad_norm_(self.sae.parameters(), self.config.grad_clip)
        self.optimizer.step()
        finite = torch.isfinite(sums["loss"]) | (self.bad_step >= 0)
        self.bad_step = torch.where(finite, self.bad_step, self.step)
        self.step += 1
        if self.step % self.config.log_every and self.step < self.config.steps:
            return {}
        self.check()
        sums |= {
            "lr": torch.tensor(lr),
            "grad_norm": norm,
            "dead": (self.silent >= self.config.dead_window).float().mean(),
        }
        return {name: float(value) for name, value in sums.items()}

    def gather_gradients(self, x: Tensor) -> dict[str, Tensor]:
        """Backward over the batch x [B, D] in micro-batches; the batch's metrics as scalars on the device."""
        total = squared_deviation(x).clamp_min(TINY)
        fired = torch.zeros_like(self.sae.b_enc)
        sums: dict[str, Tensor] = {}
        for part in x.split(self.config.micro_batch_tokens or len(x)):
            fit = self.sae.fit(part, self.config.sparsity_at(self.step))
            loss = self.add_aux(fit, part)
            share = len(part) / len(x)
            (loss * share).backward()
            for name, value in {"loss": loss, **fit.parts}.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * share
            fired += fit.fired
        self.silent = torch.where(fired > 0, 0, self.silent + len(x))
        return {**sums, "fvu": sums["mse"] * len(x) / total, "l0": fired.sum() / len(x)}

    def add_aux(self, fit: Fit, x: Tensor) -> Tensor:
        """The loss of the fit, plus that of the dead latents where there are some. Inputs have a squared norm of about
        D, and so have the errors before training: the aux loss, a share, is brought to the same scale."""
        if not self.config.aux_coefficient or not len(self.dead_latents):
            return fit.loss
        aux = revive(self.sae, x, (x - fit.x_hat).detach(), self.dead_latents)
        fit.parts["aux"] = aux
        return fit.loss + self.config.aux_coefficient * x.shape[1] * aux

    def check(self) -> None:
        """Raises Diverged if a loss up to now was no finite number."""
        if (bad := int(self.bad_step)) >= 0:
            raise Diverged(
                f"the loss stopped being a finite number at step {bad} of {self.config.steps}: the learning "
                f"rate {self.config.peak_lr:g} is too high for this data, or the activations have extreme values.",
                "Start again with a lower learning rate.",
            )

    def export(self) -> Sae:
        """The SAE as it is now, folded: it reads unscaled activations and its decoder rows have norm 1."""
        self.check()
        return self.sae.folded(self.scale)


def squared_deviation(x: Tensor) -> Tensor:
    """Of the rows of x [B, D] from their mean, summed."""
    return (x - x.mean(0)).square().sum()
