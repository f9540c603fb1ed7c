"""What an SAE keeps of the model's activations and of its predictions, on held-out tokens.

Sums run in float64 over all tokens; a ratio is formed once, at the end. Definitions as in SAELens 6.54 /
SAEBench: explained variance is 1 - E|x - x_hat|^2 / (E|x|^2 - |E x|^2), CE recovered (CE_zero - CE_sae) /
(CE_zero - CE_clean).
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from jobs.ml.language_model import is_causal
from jobs.ml.sae import Sae
from jobs.ml.sequences import Batch, batches, covering
from jobs.ml.sites import Site, capture, replaced, resolve
from jobs.ml.tokens import TokenShards

DENSE = 0.1  # of the tokens
LOGIT_BYTES = 2**27  # for one forward pass: fewer sequences at once where the vocabulary is large


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    sae: Sae,
    site: str,
    shards: TokenShards,
    *,
    tokens: int = 2**17,
    ce_tokens: int = 2**15,
    skip_special: bool = True,
    model_batch: int = 8,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """A dictionary of plain numbers; None is "not measured", and `not_measured` says why.

    tokens, ce_tokens: about how many to read (whole sequences from the beginning of the split) for the
    reconstruction and for the predictions. Special tokens keep their own activation and are not counted.
    on_progress(sequences, of) may raise to stop. Raises ValueError where the split is empty.
    """
    place = resolve(model, site, sae.d_in)
    causal = is_causal(model.config)
    rows = covering(shards, tokens)
    ce_rows = covering(shards, ce_tokens) if causal else 0
    quality, predictions = Reconstruction(sae), Predictions(model, sae, place)
    for read in batches(shards, 0, rows, model_batch, skip_special):
        read = read.to(model.device)
        quality.add(read.counted(capture(model, place, read.ids, read.attention)))
        on_progress(read.first + len(read.ids), rows + ce_rows)
    logit_bytes = 4 * shards.context_length * model.config.get_text_config().vocab_size  # of one sequence
    size = min(model_batch, max(1, LOGIT_BYTES // logit_bytes))
    for read in batches(shards, 0, ce_rows, size, skip_special):
        predictions.add(read.to(model.device))
        on_progress(rows + read.first + len(read.ids), rows + ce_rows)
    reason = {} if causal else {"ce": f"{type(model).__name__} does not predict the next token"}
    return {
        **quality.results(),
        **predictions.results(),
        "special_tokens_skipped": skip_special,
        "not_measured": reason,
    }


class Reconstruction:
    """Sums over tokens of what x_hat keeps of x."""

    def __init__(self, sae: Sae) -> None:
        self.sae = sae
        self.n = 0
        device = sae.b_dec.device
        self.sum_x = torch.zeros(sae.d_in, dtype=torch.float64, device=device)
        self.fired = torch.zeros(sae.width, dtype=torch.long, device=device)
        names = ("x2", "x_hat2", "dot", "error", "cosine", "ratio")
        self.sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in names}

    def add(self, x: Tensor) -> None:
        """x [B, D]"""
        if not len(x):
            return
        x = x.to(self.sum_x.device, torch.float32)
        codes = self.sae.active(x)
        self.fired += torch.bincount(codes.latents, minlength=self.sae.width)
        x, x_hat = x.double(), self.sae.decode_active(codes, len(x)).double()
        lengths, lengths_hat = x.norm(dim=1), x_hat.norm(dim=1)
        dots = (x * x_hat).sum(1)
        self.n += len(x)
        self.sum_x += x.sum(0)
        for name, values in {
            "x2": lengths.square(),
            "x_hat2": lengths_hat.square(),
            "dot": dots,
            "error": (x - x_hat).square().sum(1),
            "cosine": dots / (lengths * lengths_hat).clamp_min(1e-30),
            "ratio": lengths_hat / lengths.clamp_min(1e-30),
        }.items():
            self.sums[name] += values.sum()

    def results(self) -> dict[str, Any]:
        n, sums = max(1, self.n), {name: total.item() for name, total in self.sums.items()}
        variance = sums["x2"] / n - (self.sum_x / n).square().sum().item()
        density = self.fired.double() / n
        fvu = ratio(sums["error"] / n, variance)
        return {
            "tokens": self.n,
            "l0": int(self.fired.sum()) / n,
            "fvu": fvu,
            "explained_variance": None if fvu is None else 1 - fvu,
            "mse": sums["error"] / n,
            "cosine": sums["cosine"] / n,
            "l2_ratio": sums["ratio"] / n,
            "relative_reconstruction_bias": ratio(sums["x_hat2"], sums["dot"]),
            "dead": int((self.fired == 0).sum()),
            "dense": int((density > DENSE).sum()),
            "alive": int((self.fired > 0).sum()),
        }


class Predictions:
    """Cross-entropy and divergence of the next-token predictions with the site's tensor as it is, rebuilt,
    and zeroed.

    Counted are the predictions made at tokens that are not special; only there is the tensor replaced.
    """

    WAYS = ("clean", "sae", "zero")

    def __init__(self, model: PreTrainedModel, sae: Sae, site: Site) -> None:
        self.model, self.sae, self.site = model, sae, site
        self.n = 0
        self.ce: dict[str, Any] = dict.fromkeys(self.WAYS, 0.0)  # sums, on the model's device as soon as there are any
        self.kl: dict[str, Any] = dict.fromkeys(self.WAYS[1:], 0.0)

    def add(self, read: Batch) -> None:
        """Where a token is skipped the tensor is not touched and nothing is counted; no padding is predicted."""
        counted = ~read.skipped[:, :-1]
        if read.attention is not None:
            counted &= read.attention[:, 1:].bool()
        targets = read.ids[:, 1:][counted]
        clean: Tensor | None = None
        for way in self.WAYS:
            logits = self.logits(read, way)
            log_p = F.log_softmax(logits[:, :-1][counted].float(), dim=-1)
            self.ce[way] += F.nll_loss(log_p, targets, reduction="none").double().sum()
            if clean is None:  # KL(clean || new) = sum p log p - sum p log q
                clean = log_p.exp()
                certainty = torch.linalg.vecdot(clean, log_p)
            else:
                self.kl[way] += (certainty - torch.linalg.vecdot(clean, log_p)).double().sum()
        self.n += int(counted.sum())

    def logits(self, read: Batch, way: str) -> Tensor:
        """[B, T, V]"""

        def edit(tensor: Tensor) -> Tensor:
            x = tensor.reshape(-1, tensor.shape[-1])
            new = torch.zeros_like(x) if way == "zero" else self.rebuild(x)
            return torch.where(read.skipped.reshape(-1, 1), x, new).view_as(tensor)

        with nullcontext() if way == "clean" else replaced(self.model, self.site, edit):
            return self.model(input_ids=read.ids, attention_mask=read.attention).logits

    def rebuild(self, x: Tensor) -> Tensor:
        """x_hat [N, D] of x [N, D], in its dtype and on its device"""
        return self.sae(x.to(self.sae.b_dec.device, torch.float32)).to(x.device, x.dtype)

    def results(self) -> dict[str, Any]:
        if not self.n:
            return (
                {"ce_tokens": 0, "ce_recovered": None}
                | {f"ce_{w}": None for w in self.WAYS}
                | {"kl_sae": None, "kl_zero": None}
            )
        ce = {way: float(total) / self.n for way, total in self.ce.items()}
        return {
            "ce_tokens": self.n,
            **{f"ce_{way}": value for way, value in ce.items()},
            "ce_recovered": ratio(ce["zero"] - ce["sae"], ce["zero"] - ce["clean"]),
            **{f"kl_{way}": float(total) / self.n for way, total in self.kl.items()},
        }


def ratio(part: float, whole: float) -> float | None:
    """None where the whole is nothing that can be divided by."""
    return part / whole if abs(whole) > 1e-12 else None
