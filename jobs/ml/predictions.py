"""What an SAE keeps of a language model's predictions, by three forward passes of each batch."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from jobs.ml.bootstrap import RESAMPLES, Formula, UnitSums, ratio
from jobs.ml.place import Place
from jobs.ml.sae import Sae
from jobs.ml.sequences import Batch
from jobs.ml.sites import replaced

FORMULAS = (
    Formula("ce_clean", 1, lambda s: ratio(s["ce_clean"], s["n"])),
    Formula("ce_sae", 1, lambda s: ratio(s["ce_sae"], s["n"])),
    Formula("ce_zero", 1, lambda s: ratio(s["ce_zero"], s["n"])),
    Formula("ce_recovered", 1, lambda s: ratio(s["ce_zero"] - s["ce_sae"], s["ce_zero"] - s["ce_clean"])),
    Formula("kl_sae", 1, lambda s: ratio(s["kl_sae"], s["n"])),
    Formula("kl_zero", 1, lambda s: ratio(s["kl_zero"], s["n"])),
    Formula("kl_recovered", 1, lambda s: ratio(s["kl_zero"] - s["kl_sae"], s["kl_zero"])),
)


class Predictions:
    """Cross-entropy and divergence of the next-token predictions with the written sites' tensors as they are, rebuilt
    from what the sites that are read hold in an undisturbed pass, and zeroed.

    Counted are the predictions made at tokens that are not special; only there are the tensors replaced.
    """

    def __init__(self, model: PreTrainedModel, sae: Sae, place: Place) -> None:
        self.model, self.sae, self.place = model, sae, place
        self.sums = UnitSums(("ce_clean", "ce_sae", "ce_zero", "kl_sae", "kl_zero"), 0, model.device)

    def add(self, read: Batch, units: Tensor) -> None:
        """units int64 [B, T], of the tokens. Where a token is skipped the tensor is not touched and nothing is
        counted; no padding is predicted."""
        counted = ~read.skipped[:, :-1]
        if read.attention is not None:
            counted &= read.attention[:, 1:].bool()
        targets = read.ids[:, 1:][counted]

        def log_p(logits: Tensor) -> Tensor:
            return F.log_softmax(logits[:, :-1][counted].float(), dim=-1)

        x, y, logits = self.place.capture_with_logits(self.model, read)
        clean = log_p(logits)
        p = clean.exp()
        certainty = torch.linalg.vecdot(p, clean)
        found = {"ce_clean": F.nll_loss(clean, targets, reduction="none")}
        for way, new in (("sae", self.rebuild(x, y)), ("zero", torch.zeros_like(y))):
            changed = log_p(self.logits(read, new))
            found[f"ce_{way}"] = F.nll_loss(changed, targets, reduction="none")
            found[f"kl_{way}"] = certainty - torch.linalg.vecdot(p, changed)  # sum p log p - sum p log q
        self.sums.add(units[:, :-1][counted], found)

    def logits(self, read: Batch, new: Tensor) -> Tensor:
        """[B, T, V], with new [B, T, D_out] in the place of the sites written."""

        def put(part: Tensor, tensor: Tensor) -> Tensor:
            flat = tensor.reshape(-1, tensor.shape[-1])
            skipped = read.skipped.reshape(-1, 1)
            return torch.where(skipped, flat, part.reshape(flat.shape)).view_as(tensor)

        with ExitStack() as edits:
            for site, part in self.place.split(new):
                edits.enter_context(replaced(self.model, site, partial(put, part)))
            return self.model(input_ids=read.ids, attention_mask=read.attention).logits

    def rebuild(self, x: Tensor, y: Tensor) -> Tensor:
        """x_hat [B, T, D_out] of x [B, T, D], in the dtype and on the device of y"""
        rebuilt = self.sae(x.reshape(-1, x.shape[-1]).to(self.sae.b_dec.device, torch.float32))
        return rebuilt.to(y.device, y.dtype).view(y.shape)

    def figures(self, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
        return self.sums.figures(FORMULAS, resamples, seed)
