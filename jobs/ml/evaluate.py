"""What an SAE keeps of the model's activations and of its predictions, on held-out tokens.

Sums run in float64 over all tokens; a ratio is formed once, at the end. Definitions as in SAELens 6.54 /
SAEBench: explained variance is 1 - E|x - x_hat|^2 / (E|x|^2 - |E x|^2), CE recovered (CE_zero - CE_sae) /
(CE_zero - CE_clean).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from jobs.ml.language_model import is_causal
from jobs.ml.place import Place, find_place
from jobs.ml.sae import Sae
from jobs.ml.sequences import Batch, batches, covering
from jobs.ml.sites import replaced
from jobs.ml.tokens import TokenShards

DENSE = 0.1  # of the tokens
LOGIT_BYTES = 2**27  # for one forward pass: fewer sequences at once where the vocabulary is large


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    sae: Sae,
    reads: str | Sequence[str],
    shards: TokenShards,
    *,
    writes: Sequence[str] = (),
    tokens: int = 2**17,
    ce_tokens: int = 2**15,
    skip_special: bool = True,
    model_batch: int = 8,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """A dictionary of plain numbers; None is "not measured", and `not_measured` says why.

    reads, writes: the sites of its inputs and, where those are others, of its outputs.
    tokens, ce_tokens: about how many to read (whole sequences from the beginning of the split) for the
    reconstruction and for the predictions. Special tokens keep their own activation and are not counted.
    on_progress(sequences, of) may raise to stop. Raises ValueError where the split is empty.
    """
    place = find_place(model, sae, reads, writes)
    causal = is_causal(model.config)
    rows = covering(shards, tokens)
    ce_rows = covering(shards, ce_tokens) if causal else 0
    quality, rebuilt = Reconstruction(sae), Predictions(model, sae, place)
    for read in batches(shards, 0, rows, model_batch, skip_special):
        read = read.to(model.device)
        x, y = place.capture(model, read)
        quality.add(read.counted(x), read.counted(y))
        on_progress(read.first + len(read.ids), rows + ce_rows)
    for read in batches(shards, 0, ce_rows, rows_with_logits(model, shards, model_batch), skip_special):
        rebuilt.add(read.to(model.device))
        on_progress(rows + read.first + len(read.ids), rows + ce_rows)
    reason = {} if causal else {"ce": f"{type(model).__name__} does not predict the next token"}
    return {
        **quality.results(),
        **rebuilt.results(),
        "special_tokens_skipped": skip_special,
        "not_measured": reason,
    }


@torch.no_grad()
def predictions(
    model: PreTrainedModel,
    sae: Sae,
    reads: str | Sequence[str],
    shards: TokenShards,
    *,
    writes: Sequence[str] = (),
    tokens: int,
    skip_special: bool = True,
    model_batch: int = 8,
) -> dict[str, Any]:
    """That part of evaluate() alone."""
    rebuilt = Predictions(model, sae, find_place(model, sae, reads, writes))
    size = rows_with_logits(model, shards, model_batch)
    for read in batches(shards, 0, covering(shards, tokens), size, skip_special):
        rebuilt.add(read.to(model.device))
    return rebuilt.results()


def rows_with_logits(model: PreTrainedModel, shards: TokenShards, model_batch: int) -> int:
    """Sequences per forward pass whose logits are not too large."""
    logit_bytes = 4 * shards.context_length * model.config.get_text_config().vocab_size  # of one sequence
    return min(model_batch, max(1, LOGIT_BYTES // logit_bytes))


class Reconstruction:
    """Sums over tokens of what x_hat keeps of the target y, which is the input for an autoencoder."""

    def __init__(self, sae: Sae) -> None:
        self.sae = sae
        self.n = 0
        device = sae.b_dec.device
        self.sum_y = torch.zeros(sae.d_out, dtype=torch.float64, device=device)
        self.fired = torch.zeros(sae.width, dtype=torch.long, device=device)
        names = ("y2", "y_hat2", "dot", "error", "cosine", "ratio")
        self.sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in names}

    def add(self, x: Tensor, y: Tensor) -> None:
        """x [B, D], y [B, D_out]"""
        if not len(x):
            return
        x, y = (tensor.to(self.sum_y.device, torch.float32) for tensor in (x, y))
        codes = self.sae.active(x)
        self.fired += torch.bincount(codes.latents, minlength=self.sae.width)
        y, y_hat = y.double(), self.sae.decode_active(codes, x).double()
        lengths, lengths_hat = y.norm(dim=1), y_hat.norm(dim=1)
        dots = (y * y_hat).sum(1)
        self.n += len(x)
        self.sum_y += y.sum(0)
        for name, values in {
            "y2": lengths.square(),
            "y_hat2": lengths_hat.square(),
            "dot": dots,
            "error": (y - y_hat).square().sum(1),
            "cosine": dots / (lengths * lengths_hat).clamp_min(1e-30),
            "ratio": lengths_hat / lengths.clamp_min(1e-30),
        }.items():
            self.sums[name] += values.sum()

    def results(self) -> dict[str, Any]:
        n, sums = max(1, self.n), {name: total.item() for name, total in self.sums.items()}
        variance = sums["y2"] / n - (self.sum_y / n).square().sum().item()
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
            "relative_reconstruction_bias": ratio(sums["y_hat2"], sums["dot"]),
            "dead": int((self.fired == 0).sum()),
            "dense": int((density > DENSE).sum()),
            "alive": int((self.fired > 0).sum()),
        }


class Predictions:
    """Cross-entropy and divergence of the next-token predictions with the written sites' tensors as they are, rebuilt
    from what the sites that are read hold in an undisturbed pass, and zeroed.

    Counted are the predictions made at tokens that are not special; only there are the tensors replaced.
    """

    WAYS = ("clean", "sae", "zero")

    def __init__(self, model: PreTrainedModel, sae: Sae, place: Place) -> None:
        self.model, self.sae, self.place = model, sae, place
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
        x, y = self.place.capture(self.model, read)
        ways: dict[str, Tensor | None] = {"clean": None, "sae": self.rebuild(x, y), "zero": torch.zeros_like(y)}
        for way, new in ways.items():
            logits = self.logits(read, new)
            log_p = F.log_softmax(logits[:, :-1][counted].float(), dim=-1)
            self.ce[way] += F.nll_loss(log_p, targets, reduction="none").double().sum()
            if clean is None:  # KL(clean || new) = sum p log p - sum p log q
                clean = log_p.exp()
                certainty = torch.linalg.vecdot(clean, log_p)
            else:
                self.kl[way] += (certainty - torch.linalg.vecdot(clean, log_p)).double().sum()
        self.n += int(counted.sum())

    def logits(self, read: Batch, new: Tensor | None) -> Tensor:
        """[B, T, V], with new [B, T, D_out] in the place of the sites written."""

        def put(part: Tensor, tensor: Tensor) -> Tensor:
            flat = tensor.reshape(-1, tensor.shape[-1])
            skipped = read.skipped.reshape(-1, 1)
            return torch.where(skipped, flat, part.reshape(flat.shape)).view_as(tensor)

        with ExitStack() as edits:
            for site, part in self.place.split(new) if new is not None else ():
                edits.enter_context(replaced(self.model, site, partial(put, part)))
            return self.model(input_ids=read.ids, attention_mask=read.attention).logits

    def rebuild(self, x: Tensor, y: Tensor) -> Tensor:
        """x_hat [B, T, D_out] of x [B, T, D], in the dtype and on the device of y"""
        rebuilt = self.sae(x.reshape(-1, x.shape[-1]).to(self.sae.b_dec.device, torch.float32))
        return rebuilt.to(y.device, y.dtype).view(y.shape)

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
