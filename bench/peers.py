"""One training step here and in the libraries of others, on the same batches, turn by turn:

/path/to/python -m bench.peers, with a Python that has torch, sae-lens and eai-sparsify beside miStudio's dependencies

Milliseconds of processor time per step, medians of `--rounds`. A step is the library's own: SAELens' SAETrainer.step;
of sparsify the forward pass and the optimiser's part of its Trainer.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from jobs.ml.config import Member, TrainConfig
from jobs.ml.sites import Site
from jobs.ml.train import Trainer

Step = Callable[[torch.Tensor], Any]


def ours(options: argparse.Namespace, x: torch.Tensor, architecture: str, selection: str) -> Step:
    config = TrainConfig(
        options.width, 10**9, architecture=architecture, options={"k": options.k}, batch_tokens=len(x), lr=1e-3,
        selection=selection, log_every=10**6,
    )  # fmt: skip
    trainer = Trainer(Member(config, ("x",)), {"x": Site("x", x.shape[1], "", "input")})
    trainer.begin({"x": x}, {"x": x})
    return lambda batch: trainer.update({"x": batch}, 1)


def saelens(options: argparse.Namespace, x: torch.Tensor, architecture: str) -> Step:
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = getattr(sae_lens, f"{architecture}TrainingSAEConfig")(d_in=x.shape[1], d_sae=options.width, k=options.k)
    run = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=len(x), lr=1e-3, lr_end=1e-4, lr_warm_up_steps=0,
        lr_decay_steps=0, device="cpu", autocast=False,
    )  # fmt: skip
    sae = getattr(sae_lens, f"{architecture}TrainingSAE")(config)
    return SAETrainer(cfg=run, sae=sae, data_provider=iter(())).step


def sparsify(options: argparse.Namespace, x: torch.Tensor) -> Step:
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=options.width, k=options.k), dtype=torch.float32)
    coder.b_dec.data = x.mean(0)
    adam = torch.optim.Adam(coder.parameters(), lr=1e-3)

    def step(batch: torch.Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(x=batch, y=batch, dead_mask=None).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"batch-tokens": 4096, "d-in": 384, "width": 6144, "k": 32, "rounds": 5, "threads": 1}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batches = torch.randn(4, options.batch_tokens, options.d_in)
    x = batches[0]
    steps: dict[str, Step] = {
        "sparsify TopK": sparsify(options, x),
        "SAELens TopK": saelens(options, x, "TopK"),
        "SAELens BatchTopK": saelens(options, x, "BatchTopK"),
        **{f"miStudio {name} {chosen}": ours(options, x, name, chosen)
           for name in ("topk", "batchtopk") for chosen in ("bfloat16", "float32")},
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.rounds + 1):
        for name, step in steps.items():
            started = time.process_time()
            step(batches[turn % len(batches)])
            times[name].append(time.process_time() - started)
    print(f"{vars(options)}, ms of processor time per step, and SAELens' TopK as a multiple of it")
    medians = {name: 1000 * statistics.median(spent[1:]) for name, spent in times.items()}
    for name, ms in medians.items():
        print(f"{name:28s} {ms:8.0f} ms {medians['SAELens TopK'] / ms:6.2f}")


if __name__ == "__main__":
    main()
