"""How many known features SAEs find: python -m bench.ground_truth --help

1,024 unit features in 256 dimensions, about 12 active at once (see jobs/ml/ground_truth.py). MMCS and MCC are those of
the decoder rows after training, FVU and L0 are of drawn activations that no training saw. With `--libraries` others
learn from the same activations, in a Python that has them, sae-lens, eai-sparsify and dictionary-learning, beside
miStudio's dependencies; activations have a mean norm of sqrt(D). How they are compared: sweep.py.
"""

from bench.libraries import OURS
from bench.sweep import Sweep, read_options
from jobs.ml.ground_truth import Features
from jobs.ml.scaling import input_scale


def main() -> None:
    features = Features()
    options = read_options(
        __doc__, [4e-3],
        {"width": features.n, "k": round(features.active), "batch-tokens": 512, "tokens": 2**18, "held-out": 2**14},
        libraries=[OURS],
    )  # fmt: skip
    scale = input_scale(features.draw(options.held_out, 2**30))
    train, held_out = (
        [scale * features.draw(options.batch_tokens, first + step) for step in range(n // options.batch_tokens)]
        for first, n in ((0, options.tokens), (2**31, options.held_out))
    )
    sweep = Sweep(options, "ground truth", train, held_out, lambda learner: features.recovered(learner.rows()))
    sweep.table(["mmcs", "mcc", "found", "fvu", "l0"])


if __name__ == "__main__":
    main()
