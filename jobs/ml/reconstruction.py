"""What an SAE keeps of a model's activations: sums over tokens in float64, ratios formed once, at the end."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.ml.bootstrap import RESAMPLES, Formula, Sums, UnitSums, ratio
from jobs.ml.sae import Sae

DENSE = 0.1  # of the tokens
BINS_PER_DECADE = 4


def fvu(s: Sums) -> np.ndarray:
    """E|y - y_hat|^2 / (E|y|^2 - |E y|^2)"""
    return ratio(s["error"] / s["n"], s["y2"] / s["n"] - s["mean2"])


FORMULAS = (
    Formula("l0", 1, lambda s: ratio(s["fired"], s["n"])),
    Formula("l1", 1, lambda s: ratio(s["l1"], s["n"])),
    Formula("fvu", 2, fvu),
    Formula("explained_variance", 2, lambda s: 1 - fvu(s)),
    Formula("mse", 2, lambda s: ratio(s["error"], s["n"])),
    Formula("cosine", 1, lambda s: ratio(s["cosine"], s["n"])),
    Formula("l2_ratio", 1, lambda s: ratio(s["ratio"], s["n"])),
    Formula("relative_reconstruction_bias", 1, lambda s: ratio(s["y_hat2"], s["dot"])),
)
SUMS = ("fired", "l1", "y2", "y_hat2", "dot", "error", "cosine", "ratio")


class Reconstruction:
    """Sums over tokens of what x_hat keeps of the target y, which is the input for an autoencoder."""

    def __init__(self, sae: Sae) -> None:
        self.sae = sae
        device = sae.b_dec.device
        self.sums = UnitSums(SUMS, sae.d_out, device)
        self.fired = torch.zeros(sae.width, dtype=torch.long, device=device)

    def add(self, x: Tensor, y: Tensor, units: Tensor) -> None:
        """x [B, D], y [B, D_out], units int64 [B]: the documents that the tokens are of"""
        if not len(x):
            return
        device = self.sae.b_dec.device
        x, y = (tensor.to(device, torch.float32) for tensor in (x, y))
        codes = self.sae.active(x)
        self.fired += torch.bincount(codes.latents, minlength=self.sae.width)
        y, y_hat = y.double(), self.sae.decode_active(codes, x).double()
        lengths, lengths_hat = y.norm(dim=1), y_hat.norm(dim=1)
        dots = (y * y_hat).sum(1)
        values = {
            "fired": torch.bincount(codes.rows, minlength=len(x)),
            "l1": torch.zeros_like(dots).index_add_(0, codes.rows, codes.values.double().abs()),
            "y2": lengths.square(),
            "y_hat2": lengths_hat.square(),
            "dot": dots,
            "error": (y - y_hat).square().sum(1),
            "cosine": dots / (lengths * lengths_hat).clamp_min(1e-30),
            "ratio": lengths_hat / lengths.clamp_min(1e-30),
        }
        self.sums.add(units.to(device), values, y)

    def figures(self, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
        return self.sums.figures(FORMULAS, resamples, seed)

    def counts(self) -> dict[str, int]:
        """Of tokens and of latents."""
        fired, n = self.fired, self.sums.n
        return {
            "tokens": n,
            "dead": int((fired == 0).sum()),
            "dense": int((fired > DENSE * n).sum()),
            "alive": int((fired > 0).sum()),
        }

    def density(self) -> dict[str, Any]:
        """How many latents fire on which share of the tokens: counts between edges, which are log10 of the share. Dead
        latents have no place there."""
        n = max(1, self.sums.n)
        shares = np.log10(self.fired[self.fired > 0].cpu().numpy() / n)
        lowest = int(np.floor(-np.log10(n)))
        bins = max(1, -lowest) * BINS_PER_DECADE
        counts, edges = np.histogram(shares, bins=bins, range=(min(lowest, -1), 0.0))
        return {"counts": counts.tolist(), "edges": edges.round(4).tolist()}
