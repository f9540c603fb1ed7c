"""What SAEs of the same kind rebuild after equally many steps, here and in other libraries:

/path/to/python -m bench.quality, with a Python that has sae-lens, eai-sparsify and dictionary-learning beside
miStudio's dependencies

All learn from the same activations of a site of the bundled model, in the same order, centred and brought to a mean
norm of sqrt(D); all are measured on the same held-out ones. How they are compared: sweep.py.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from bench.libraries import LIBRARIES
from bench.sweep import Sweep, read_options
from jobs.ml.activations import ActivationStream
from jobs.ml.language_model import load_model
from jobs.ml.packing import pack
from jobs.ml.scaling import input_scale
from jobs.ml.tokenizer import load_tokenizer
from jobs.ml.tokens import TokenShards
from mistudio.demo.corpus import documents

MODEL_FOLDER = Path(__file__).parent.parent / "mistudio/demo/model"
SITE = "blocks.2.hook_resid_pre"


def activations(tokens: int, held_out: int, batch_tokens: int) -> tuple[list[Tensor], list[Tensor]]:
    """Batches to train on, and batches of documents that are in none of those."""
    model, texts = load_model(MODEL_FOLDER), [document.text for document in documents()]
    with tempfile.TemporaryDirectory() as folder:
        pack(lambda n: texts[n:], load_tokenizer(MODEL_FOLDER), folder, context_length=128, held_out=0.1, seed=0)
        found = []
        for split, n in (("train", tokens), ("held_out", held_out)):
            stream = ActivationStream(model, SITE, TokenShards(folder, split), batch_tokens=batch_tokens, seed=20_000)
            found.append([stream.batch(step)[SITE].clone() for step in range(n // batch_tokens)])
    centre = torch.stack([x.mean(0) for x in found[0]]).mean(0)
    scale = input_scale(torch.cat(found[0][:64]) - centre)
    train, rest = ([(x - centre) * scale for x in batches] for batches in found)
    return train, rest


def main() -> None:
    options = read_options(
        __doc__, [2e-3, 4e-3, 8e-3],
        {"width": 1024, "k": 32, "batch-tokens": 512, "tokens": 512 * 600, "held-out": 512 * 40},
        libraries=list(LIBRARIES),
    )  # fmt: skip
    Sweep(options, SITE, *activations(options.tokens, options.held_out, options.batch_tokens)).table(
        ["fvu", "l0", "dead"]
    )


if __name__ == "__main__":
    main()
