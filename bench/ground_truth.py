"""How many known features each architecture finds: python -m bench.ground_truth --help

1,024 unit features in 256 dimensions, about 12 active at once (see jobs/ml/ground_truth.py). MMCS and MCC are those of
the decoder rows after training, FVU and L0 are of drawn activations that no training saw.
"""

import argparse
import time

import torch

from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.config import TrainConfig
from jobs.ml.ground_truth import Features, trained_on
from jobs.ml.reconstruction import Reconstruction

TESTED = 2**14  # tokens
LAST = 2**40  # a seed that no step of a training has


def bench(features: Features, architecture: str, options: argparse.Namespace) -> None:
    presets = ARCHITECTURES[architecture].presets
    own = {"k": round(features.active)} if "k" in presets else {}
    config = TrainConfig(
        options.width, options.tokens, architecture, own, batch_tokens=options.batch_tokens, lr=options.lr
    )
    started = time.monotonic()
    sae = trained_on(features, config)
    seconds = time.monotonic() - started
    found = features.recovered(sae.W_dec)
    x, quality = features.draw(TESTED, LAST), Reconstruction(sae)
    with torch.no_grad():
        quality.add(x, x, torch.arange(len(x)))
    figures = {name: one["value"] for name, one in quality.figures(resamples=0).items()}
    mcc = "     –" if found["mcc"] is None else f"{found['mcc']:6.3f}"
    print(
        f"{architecture:<14} MMCS {found['mmcs']:6.3f}  MCC {mcc}  found {100 * found['found']:5.1f} %  "
        f"FVU {figures['fvu']:6.3f}  L0 {figures['l0']:6.1f}  {seconds:6.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="*", help="default: all that rebuild what they read")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    features = Features(seed=options.seed)
    whole = [name for name, one in ARCHITECTURES.items() if not one.transcodes and not one.spans]
    made = f"{features.n} features in {features.dimensions} dimensions, {features.active:g} active"
    print(f"{made}, {options.tokens:,} tokens")
    for architecture in options.architectures or whole:
        bench(features, architecture, options)


if __name__ == "__main__":
    main()
