"""An SAE in training here and in the libraries of others, under one interface, on the device of its first batch.

Each does the step of its own library, with that library's initialisation, optimiser, clipping and normalisations. A
TrainConfig says to all of them: width, batch, steps, learning rate and when it rises and falls, k, the weight of the
sparsity penalty and over which share of the steps it rises, and after how many tokens a latent counts as dead.
"""

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from jobs.ml.config import Member, TrainConfig
from jobs.ml.sae import Moment
from jobs.ml.sites import Site
from jobs.ml.train import Trainer

LEVELS = 5  # of Matryoshka: all latents, the first half, quarter, eighth and sixteenth
SITE = "x"
BISECTIONS = 16


class Learner(Protocol):
    def step(self, x: Tensor) -> object:
        """One step of the optimiser on x [B, D]."""

    def rebuild(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x_hat [B, D], and on how many rows each latent is active [M]; chosen as in training, from the whole batch."""

    def rows(self) -> Tensor:
        """The decoder [M, D]."""

    def biases(self) -> Tensor:
        """[M], of which it depends whether a latent is active."""


class Ours:
    def __init__(self, config: TrainConfig, x: Tensor) -> None:
        site = Site(SITE, x.shape[1], "", "input")
        self.trainer = Trainer(Member(config, (SITE,)), {SITE: site}, str(x.device))
        self.trainer.begin({SITE: x}, {SITE: x})
        self.steps = 0

    def step(self, x: Tensor) -> None:
        self.trainer.update({SITE: x}, self.steps)
        self.steps += 1

    @torch.no_grad()
    def rebuild(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.trainer.scaled({SITE: x})
        sae, nothing = self.trainer.sae, torch.empty(0, dtype=torch.long)
        fit = sae.fit(y, y, sae.support(y), Moment(self.trainer.config, self.steps - 1, nothing))
        return fit.x_hat / self.trainer.scales[0][0], fit.fired

    def rows(self) -> Tensor:
        return self.trainer.sae.W_dec.data

    def biases(self) -> Tensor:
        return self.trainer.sae.b_enc.data


class SaeLens:
    def __init__(self, config: TrainConfig, x: Tensor) -> None:
        import sae_lens
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(config.seed)
        name, own = saelens_options(config)
        device = str(x.device)
        made = getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=x.shape[1], d_sae=config.width, device=device, **own)
        run = SAETrainerConfig(
            total_training_samples=config.steps * config.batch_tokens, train_batch_size_samples=config.batch_tokens,
            lr=config.peak_lr, lr_end=config.peak_lr / 10, lr_warm_up_steps=config.warmup,
            lr_decay_steps=round(config.steps * config.lr_decay_share),
            dead_feature_window=config.dead_window // config.batch_tokens, device=device,
        )  # fmt: skip
        sae = getattr(sae_lens, f"{name}TrainingSAE")(made)
        self.trainer = SAETrainer(cfg=run, sae=sae, data_provider=iter(()))

    def step(self, x: Tensor) -> None:
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def rebuild(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.trainer.sae.encode(x)
        return self.trainer.sae.decode(f), (f != 0).sum(0)

    def rows(self) -> Tensor:
        return self.trainer.sae.W_dec.data

    def biases(self) -> Tensor:
        sae = self.trainer.sae
        return sae.b_gate.data if hasattr(sae, "b_gate") else sae.b_enc.data


def saelens_options(config: TrainConfig) -> tuple[str, dict[str, Any]]:
    """The beginning of its classes' names, and what they take."""
    options, rising = config.options, sparsity_warmup(config)
    if config.architecture in ("standard", "gated"):
        return config.architecture.title(), {"l1_coefficient": options["l1_coefficient"], "l1_warm_up_steps": rising}
    if config.architecture == "jumprelu":
        return "JumpReLU", {
            "jumprelu_sparsity_loss_mode": options["l0_loss"], "target_l0": options["target_l0"],
            "l0_coefficient": options["l0_coefficient"], "l0_warm_up_steps": rising,
        }  # fmt: skip
    k = {"k": options["k"]}
    if config.architecture == "matryoshka":
        widths = sorted(-(-config.width // 2**level) for level in range(LEVELS))
        return "MatryoshkaBatchTopK", {**k, "matryoshka_widths": widths}
    return {"topk": "TopK", "batchtopk": "BatchTopK", "abstopk": "AbsTopK"}[config.architecture], k


class DictionaryLearning:
    """It brings activations to a mean squared norm of 1."""

    CLASSES = {
        "topk": "top_k.TopKTrainer",
        "batchtopk": "batch_top_k.BatchTopKTrainer",
        "matryoshka": "matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer",
        "jumprelu": "jumprelu.JumpReluTrainer",
        "standard": "standard.StandardTrainerAprilUpdate",
        "gated": "gdm.GatedSAETrainer",
        "p_anneal": "p_anneal.PAnnealTrainer",
    }

    def __init__(self, config: TrainConfig, x: Tensor) -> None:
        module, _, cls = self.CLASSES[config.architecture].partition(".")
        self.scale = 1 / float(x.square().sum(1).mean().sqrt())
        torch.manual_seed(config.seed)
        self.trainer = getattr(import_module(f"dictionary_learning.trainers.{module}"), cls)(
            steps=config.steps, activation_dim=x.shape[1], dict_size=config.width, layer=0, lm_name="",
            device=str(x.device), lr=config.peak_lr, warmup_steps=config.warmup, seed=config.seed,
            decay_start=config.steps - round(config.steps * config.lr_decay_share), **self.options(config),
        )  # fmt: skip
        self.trainer.dead_feature_threshold = config.dead_window
        self.steps = 0

    def options(self, config: TrainConfig) -> dict[str, Any]:
        options, rising = config.options, sparsity_warmup(config)
        if config.architecture == "matryoshka":
            shares = [2.0**-level for level in range(1, LEVELS)]
            return {"k": options["k"], "group_fractions": [shares[-1], *reversed(shares)]}
        if "k" in options:
            return {"k": options["k"]}
        if config.architecture == "jumprelu":
            return {"target_l0": options["target_l0"], "sparsity_warmup_steps": rising}
        if config.architecture == "p_anneal":
            return {
                "initial_sparsity_penalty": options["l1_coefficient"], "sparsity_warmup_steps": rising,
                "sparsity_function": "Lp^p", "p_end": options["p_end"],
                "anneal_start": round(float(options["anneal_from"]) * config.steps),
            }  # fmt: skip
        return {"l1_penalty": options["l1_coefficient"], "sparsity_warmup_steps": rising}

    def step(self, x: Tensor) -> None:
        self.trainer.update(self.steps, x * self.scale)
        self.steps += 1

    @torch.no_grad()
    def rebuild(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sae = self.trainer.ae
        by_batch = {"use_threshold": False} if hasattr(sae, "threshold") and hasattr(sae, "k") else {}
        f = sae.encode(x * self.scale, **by_batch)
        return sae.decode(f) / self.scale, (f != 0).sum(0)

    def rows(self) -> Tensor:
        sae = self.trainer.ae
        return sae.W_dec.data if hasattr(sae, "W_dec") else sae.decoder.weight.data.T

    def biases(self) -> Tensor:
        sae = self.trainer.ae
        biases = [getattr(sae, name) for name in ("gate_bias", "b_enc") if hasattr(sae, name)]
        return biases[0].data if biases else sae.encoder.bias.data


class Sparsify:
    """The forward pass and the optimiser's part of its Trainer, with Adam."""

    def __init__(self, config: TrainConfig, x: Tensor) -> None:
        from sparsify import SparseCoder, SparseCoderConfig

        torch.manual_seed(config.seed)
        made = SparseCoderConfig(num_latents=config.width, k=int(config.options["k"]))
        self.sae = SparseCoder(x.shape[1], made, device=x.device, dtype=torch.float32)
        self.sae.b_dec.data = x.mean(0)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=1.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, config.lr_at)

    def step(self, x: Tensor) -> None:
        self.sae.set_decoder_norm_to_unit_norm()
        self.sae(x=x, y=x, dead_mask=None).fvu.backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()

    @torch.no_grad()
    def rebuild(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, latents, _ = self.sae.encode(x)
        fired = torch.bincount(latents[values > 0], minlength=self.sae.num_latents)
        return self.sae.decode(values, latents), fired

    def rows(self) -> Tensor:
        return self.sae.W_dec.data

    def biases(self) -> Tensor:
        return self.sae.encoder.bias.data


OURS = "miStudio"
LIBRARIES: dict[str, Callable[[TrainConfig, Tensor], Learner]] = {
    OURS: Ours,
    "SAELens": SaeLens,
    "dictionary_learning": DictionaryLearning,
    "sparsify": Sparsify,
}
TRAINS = {
    OURS: ("topk", "batchtopk", "matryoshka", "abstopk", "jumprelu", "standard", "gated", "p_anneal"),
    "SAELens": ("topk", "batchtopk", "matryoshka", "abstopk", "jumprelu", "standard", "gated"),
    "dictionary_learning": tuple(DictionaryLearning.CLASSES),
    "sparsify": ("topk",),
}


def sparsity_warmup(config: TrainConfig) -> int:
    return math.ceil(config.steps * float(config.options.get("sparsity_warmup_share", 0)))


def sparsen(learner: Learner, x: Tensor, k: int) -> None:
    """Lowers all biases alike, by trying, until k latents are active on a row of x [B, D]: as after a training."""
    biases, low, high = learner.biases(), 0.0, math.inf
    before, by = biases.clone(), 1.0
    for _ in range(BISECTIONS):
        biases.copy_(before - by)
        low, high = (by, high) if l0_of(learner, x) > k else (low, by)
        by = (low + high) / 2 if high < math.inf else 2 * low


def l0_of(learner: Learner, x: Tensor) -> float:
    return float(learner.rebuild(x)[1].sum()) / len(x)


def measure(learner: Learner, batches: list[Tensor]) -> dict[str, float]:
    """FVU, L0, and the share of latents that are active on no row. Sums in float64."""
    error, fired, n = 0.0, torch.zeros(len(learner.rows()), device=batches[0].device), 0
    mean = torch.stack([x.double().sum(0) for x in batches]).sum(0) / sum(map(len, batches))
    variance = sum(float((x.double() - mean).square().sum()) for x in batches)
    for x in batches:
        x_hat, on = learner.rebuild(x)
        error += float((x - x_hat).double().square().sum())
        fired += on
        n += len(x)
    return {"fvu": error / variance, "l0": float(fired.sum()) / n, "dead": float((fired == 0).float().mean())}
