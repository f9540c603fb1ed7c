"""What training steps need of memory beside the activations, the weights and the optimiser's two moments:

/path/to/python -m bench.memory, with a Python that has sae-lens and eai-sparsify beside miStudio's dependencies

MiB by which the process' own memory grew at most while an SAE was made and did `--steps` steps, without three times the
bytes of its weights. Each in a process of its own, which has done a small step of its kind before it begins to count.
"""

import argparse
import multiprocessing
import statistics

import torch

from bench.libraries import LIBRARIES, OURS
from jobs.ml.config import TrainConfig
from jobs.ml.meter import Meter

CASES = [("SAELens", "topk", "float32"), ("sparsify", "topk", "float32"), ("SAELens", "batchtopk", "float32")] + [
    (OURS, architecture, selection) for architecture in ("topk", "batchtopk") for selection in ("bfloat16", "float32")
]


def steps(library: str, config: TrainConfig, x: torch.Tensor, n: int) -> int:
    """Bytes of the weights."""
    learner = LIBRARIES[library](config, x)
    for _ in range(n):
        learner.step(x)
    rows = learner.rows()
    return rows.element_size() * (2 * rows.numel() + sum(rows.shape))


def grown(library: str, architecture: str, selection: str, options: argparse.Namespace) -> float:
    torch.set_num_threads(options.threads)
    sizes = {"architecture": architecture, "selection": selection, "lr": 1e-3}
    small = TrainConfig(256, 10**6, options={"k": 4}, batch_tokens=64, **sizes)
    steps(library, small, torch.randn(64, 32), 1)
    config = TrainConfig(options.width, 10**9, options={"k": options.k}, batch_tokens=options.batch_tokens, **sizes)
    x = torch.randn(options.batch_tokens, options.d_in)
    meter = Meter()
    weights = steps(library, config, x, options.steps)
    return ((meter.peak_bytes() or 0) - 3 * weights) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"batch-tokens": 4096, "d-in": 384, "width": 6144, "k": 32, "steps": 5, "rounds": 3, "threads": 1}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    print(
        f"{vars(options)}, MiB above activations, weights and moments, medians, and SAELens' TopK as a multiple of it"
    )
    medians: dict[tuple[str, str, str], float] = {}
    for case in CASES:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            medians[case] = statistics.median(pool.starmap(grown, [(*case, options)] * options.rounds, chunksize=1))
        name = " ".join(case)
        print(f"{name:32s} {medians[case]:8.0f} MiB {medians[CASES[0]] / medians[case]:6.2f}", flush=True)


if __name__ == "__main__":
    main()
