"""Training SAEs on one stream of activations: a generator of ticks, stopped by no longer asking for the next one."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from jobs.ml.architectures import build
from jobs.ml.config import BadConfig, Member
from jobs.ml.errors import WithHint
from jobs.ml.parallel import ALONE, Ranks
from jobs.ml.read_ahead import ReadAhead
from jobs.ml.revival import revive, variance
from jobs.ml.sae import TINY, Fit, Moment, Sae
from jobs.ml.scaling import geometric_median, input_scale
from jobs.ml.sites import Site
from jobs.ml.support import Support, in_parts

REFRESH = 16  # steps between looks at which latents are dead: that takes a host sync on a GPU
Activations = Mapping[str, Tensor]  # by site, [B, D] of the same tokens


class Diverged(WithHint):
    pass


class Stream(Protocol):
    """Where activations come from: ActivationStream, CachedActivations."""

    batch_tokens: int

    @property
    def sites(self) -> Mapping[str, Site]: ...

    def identity(self) -> dict[str, Any]: ...

    def at_hand(self, step: int) -> bool: ...

    def prepare(self, step: int) -> Iterator[None]: ...

    def batch(self, step: int) -> Activations: ...

    def ahead(self, steps: int) -> Iterator[None]: ...

    def sample(self) -> Activations: ...


Source = TypeVar("Source", bound=Stream)


@dataclass(frozen=True)
class Tick:
    """Comes after every step, and while activations are gathered for the next one."""

    step: int  # steps done
    steps: int
    tokens: int  # tokens seen
    metrics: Sequence[Mapping[str, float]] = field(default_factory=list)  # one for each SAE; after every
    # `log_every`th step, and the last, else none. Of an SAE that diverged: at which step, as `diverged`, alone


class Trainer:
    """One SAE in training. Everything random happens before the first step, so there is no generator to save."""

    def __init__(self, member: Member, sites: Mapping[str, Site], device: str = "cpu", *, ranks: Ranks = ALONE) -> None:
        """Raises BadConfig, ValueError."""
        member.check()
        self.member, self.config, self.device, self.ranks = member, member.config, device, ranks
        config, self.widths = self.config, [[sites[name].width for name in side] for side in self.sides]
        d_in, d_out = map(sum, self.widths)
        options = {**config.options, "parts": self.widths[0]}
        self.sae: Sae = build(config.architecture, d_in, config.width, d_out=d_out, **options).to(device)
        self.sae.ranks = ranks
        groups = [
            {"params": [parameter], "least": self.sae.reach.get(name, 0.0) / config.steps}  # learning rate at the peak
            for name, parameter in self.sae.named_parameters()
        ]
        self.clipped = [  # each by its own norm
            [parameter for name, parameter in self.sae.named_parameters() if (name in self.sae.reach) == reaching]
            for reaching in (False, True)
        ]
        self.optimizer = torch.optim.Adam(groups, lr=0.0, betas=(config.beta1, config.squares_beta), fused=True)
        self.selection = None if config.selection == "float32" else getattr(torch, config.selection)
        self.scales: list[list[float]] = []  # of the sites read and written; none until they have been estimated
        self.silent = torch.zeros(config.width, dtype=torch.long, device=device)  # tokens since each latent fired
        self.dead = torch.zeros(config.width, dtype=torch.bool, device=device)  # as of the last look
        self.dead_latents = torch.empty(0, dtype=torch.long, device=device)
        self.bad_step = torch.full((), -1, dtype=torch.long, device=device)  # first one whose loss was not finite
        self.diverged: int | None = None  # that step, as of the last look: it learns no more

    @property
    def sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.member.reads, self.member.targets

    def begin(self, sample: Activations, batch: Activations) -> None:
        """Scales from the first chunk of activations, centres from the first batch; neither is used up by it."""
        self.scales = [[input_scale(sample[name]) for name in side] for side in self.sides]
        x, y = self.scaled(batch)
        y_centre = geometric_median(y)
        self.sae.initialise(self.config.seed, y_centre, y_centre if y is x else geometric_median(x))

    def scaled(self, batch: Activations) -> tuple[Tensor, Tensor]:
        """Inputs [B, D] and targets [B, D_out]: the same tensor where the same sites are read and written."""
        x = side_by_side(batch, self.member.reads, self.scales[0])
        return x, side_by_side(batch, self.member.writes, self.scales[1]) if self.member.writes else x

    def update(self, batch: Activations, step: int) -> dict[str, float]:
        """One optimizer step with the rows of this process; metrics, of all rows, where this step is to be logged. None
        is taken once it was seen to diverge."""
        logged = not (step + 1) % self.config.log_every or step + 1 == self.config.steps
        if self.diverged is not None:
            return {"diverged": self.diverged} if logged else {}
        x, y = self.scaled(batch)
        if step % REFRESH == 0:
            self.dead = self.silent >= self.config.dead_window
            self.dead_latents = self.dead.nonzero().flatten()
        lr = self.config.lr_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * max(1.0, group["least"] / self.config.peak_lr)
        self.optimizer.zero_grad()
        sums, fired = self.gather_gradients(x, y, Moment(self.config, step, self.dead_latents))
        rows = len(x) * self.ranks.size
        self.silent = torch.where(fired > 0, 0, self.silent + rows)
        norms = [clip_grad_norm_(parameters, self.config.grad_clip) for parameters in self.clipped if parameters]
        self.optimizer.step()
        self.sae.constrain()
        finite = torch.isfinite(sums["loss"]) | (self.bad_step >= 0)
        self.bad_step = torch.where(finite, self.bad_step, step)
        if not logged:
            return {}
        if (bad := self.look()) is not None:
            return {"diverged": bad}
        deviation = squared_deviation(y, self.ranks).clamp_min(TINY)
        sums |= {
            "fvu": sums["mse"] * rows / deviation,
            "l0": fired.sum() / rows,
            "grad_norm": torch.stack(norms).norm(),
        }
        sums["dead"] = (self.silent >= self.config.dead_window).float().mean()
        return dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)) | {"lr": lr}

    def gather_gradients(self, x: Tensor, y: Tensor, moment: Moment) -> tuple[dict[str, Tensor], Tensor]:
        """Backward over the batch x [B, D], y [B, D_out] in micro-batches: what the loss is the sum of, as scalars on
        the device, and on how many rows each latent fired [M]. What is active is chosen in the whole batch, so that its
        parts change nothing. All that comes out, gradients too, is of the rows of all processes."""
        support = self.sae.support(x, self.selection)
        self.sae.observe(x, support, moment)
        fired = torch.zeros_like(self.sae.b_enc)
        sums: dict[str, Tensor] = {}
        parts = list(in_parts(self.config.part_of(len(x)), support, x, y))
        scale = self.residual_variance(parts) if len(parts) > 1 and self.revives(moment.dead) else None
        for own, (part, target) in parts:
            fit = self.sae.fit(part, target, own, moment)
            loss = self.add_aux(fit, part, target, moment.dead, scale)
            share = len(part) / (len(x) * self.ranks.size)
            (loss * share).backward()
            for name, value in {"loss": loss, **fit.parts}.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * share
            fired += fit.fired
        gradients = [one.grad for one in self.sae.parameters() if one.grad is not None]
        self.ranks.sum(*gradients, fired, *sums.values())
        return sums, fired

    def revives(self, dead: Tensor) -> bool:
        return bool(self.config.options["aux_coefficient"]) and len(dead) > 0

    def residual_variance(self, parts: Sequence[tuple[Support, list[Tensor]]]) -> Tensor:
        """In the whole batch, of which no part knows: that takes a pass of its own."""
        return variance(torch.cat([self.sae.residual(x, y, own) for own, (x, y) in parts]), self.ranks)

    def add_aux(self, fit: Fit, x: Tensor, y: Tensor, dead: Tensor, scale: Tensor | None) -> Tensor:
        """The loss of the fit, plus that of the dead latents where there are some. Targets have a squared norm of about
        D, and so have the errors before training: the aux loss, a share, is brought to the same scale. scale: see
        revive."""
        if not self.revives(dead):
            return fit.loss
        fit.parts["aux"] = revive(self.sae, x, (y - fit.x_hat).detach(), dead, scale)
        return fit.loss + float(self.config.options["aux_coefficient"]) * y.shape[1] * fit.parts["aux"]

    def look(self) -> int | None:
        """Finds out whether it diverged: that takes a host sync on a GPU."""
        if (bad := int(self.bad_step)) >= 0:
            self.diverged = bad
        return self.diverged

    def divergence(self) -> Diverged:
        """What to say of one that diverged."""
        return Diverged(
            f"the loss stopped being a finite number at step {self.diverged} of {self.config.steps}: the learning "
            f"rate {self.config.peak_lr:g} is too high for this data, or the activations have extreme values.",
            "Start again with a lower learning rate.",
        )

    def export(self) -> Sae:
        """The SAE as it is now, folded: it reads unscaled activations and its decoder rows have norm 1. Raises
        Diverged."""
        if self.look() is not None:
            raise self.divergence()
        return self.sae.folded(*(spread(*side) for side in zip(self.scales, self.widths, strict=True))).eval()


class Run(Generic[Source]):
    """SAEs that learn side by side from the same activations: one forward pass and one order of tokens feed them all.
    Each becomes what it would have become alone on the same stream, to the last bit, and one that diverges does so
    alone."""

    def __init__(
        self,
        members: Sequence[Member],
        stream: Source,
        device: str = "cpu",
        *,
        devices: Sequence[str] = (),
        ranks: Ranks = ALONE,
        read_ahead: bool = True,
    ) -> None:
        """devices: the SAEs are dealt out to them; none is all to `device`. ranks: processes that train all SAEs
        together, each with its rows of every batch. read_ahead: the activations of the next steps are made in a thread
        while this one is computed; not where processes must speak in one order. Raises BadConfig, ValueError."""
        self.stream, self.device, self.devices, self.ranks = stream, device, devices or (device,), ranks
        self.config = members[0].config
        self.read_ahead = read_ahead and ranks.size == 1
        self.reader: ReadAhead | None = None
        for name in ("tokens", "batch_tokens", "log_every"):
            if len({getattr(member.config, name) for member in members}) > 1:
                raise BadConfig(name, f"{name} must be the same for all SAEs of a run.")
        if stream.batch_tokens != self.config.batch_tokens:
            said = f"the stream gives {stream.batch_tokens}, the configuration asks for {self.config.batch_tokens}."
            raise BadConfig("batch_tokens", f"batch_tokens must be the same for both: {said}")
        if stream.batch_tokens % ranks.size:
            said = f"a multiple of the {ranks.size} processes that share a batch, not {stream.batch_tokens}."
            raise BadConfig("batch_tokens", f"batch_tokens must be {said}")
        if len(self.devices) > 1 and ranks.size > 1:
            raise BadConfig("devices", "devices are for one process: of several, each has one of its own.")
        self.trainers = [
            Trainer(member, stream.sites, self.devices[n % len(self.devices)], ranks=ranks)
            for n, member in enumerate(members)
        ]
        self.step = 0
        self.stopped = False  # ended before the last step, by choice
        self.seconds = 0.0  # spent in training, over all attempts

    @property
    def finished(self) -> bool:
        return self.stopped or self.step >= self.config.steps

    @property
    def tokens(self) -> int:
        return self.step * self.config.batch_tokens

    def run(self) -> Iterator[Tick]:
        """Raises Diverged where no SAE is left that learns, NonFiniteActivations."""
        self.reader = ReadAhead(self.stream, self.config.steps if self.read_ahead else 0)
        with self.reader as reader, ThreadPoolExecutor(len(self.devices), "device") as workers:
            while not self.finished:
                started = time.monotonic()
                yield from (self.tick() for _ in reader.prepare(self.step))
                batch = reader.batch(self.step)
                if self.step == 0:
                    self.begin(batch)
                reader.ask(self.step + 1)
                metrics = self.update(batch, workers)
                self.step += 1
                self.seconds += time.monotonic() - started
                if metrics[0]:
                    self.check()
                yield self.tick(metrics if metrics[0] else ())

    def begin(self, batch: Activations) -> None:
        sample = self.stream.sample()
        for device in dict.fromkeys(self.devices):
            own_sample, own_batch = on(device, sample), on(device, batch)
            for trainer in self.trainers:
                if trainer.device == device:
                    trainer.begin(own_sample, own_batch)

    def update(self, batch: Activations, workers: Executor) -> list[dict[str, float]]:
        """One step of every SAE. Those on different devices take it at the same time: where one waits for its device,
        its thread does."""
        own = {name: x[self.ranks.own(len(x))] for name, x in batch.items()}
        copies = {device: on(device, own) for device in self.devices}
        updates = [partial(trainer.update, copies[trainer.device], self.step) for trainer in self.trainers]
        if len(self.devices) == 1:
            return [update() for update in updates]
        return [future.result() for future in [workers.submit(update) for update in updates]]

    def settle(self) -> None:
        """Waits until nobody reads ahead: the language model can be used by others then."""
        if self.reader:
            self.reader.rest()

    def tick(self, metrics: Sequence[Mapping[str, float]] = ()) -> Tick:
        return Tick(self.step, self.config.steps, self.tokens, metrics)

    def check(self) -> None:
        """Looks which SAEs diverged; raises Diverged, with what the first of them says, if all did."""
        looks = [trainer.look() for trainer in self.trainers]
        if None not in looks:
            raise self.trainers[0].divergence()


def side_by_side(batch: Activations, names: Sequence[str], scales: Sequence[float]) -> Tensor:
    """[B, D_1 + D_2 + ...], each site scaled."""
    parts = [batch[name] * scale for name, scale in zip(names, scales, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def spread(scales: Sequence[float], widths: Sequence[int]) -> Tensor:
    """One scale for each dimension; a single one where there is one site."""
    values = torch.tensor(scales)
    return values[0] if len(scales) == 1 else values.repeat_interleave(torch.tensor(widths))


def on(device: str, batch: Activations) -> Activations:
    return {name: x.to(device) for name, x in batch.items()}


def squared_deviation(x: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Of the rows of x [B, D] of all processes from their mean, summed."""
    total = (x - ranks.mean(x.mean(0))).square().sum()
    ranks.sum(total)
    return total
