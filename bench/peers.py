"""Training steps here and in the libraries of others, on the same batches, turn by turn:

/path/to/python -m bench.peers, with a Python that has torch, sae-lens, eai-sparsify and dictionary-learning beside
miStudio's dependencies

Milliseconds of processor time per step, on a GPU of wall time until it is done; medians over `--rounds` of `--steps`
each. The step before them is not counted: in it a library takes back the memory that the one before it gave up. What a
step is: libraries.py. The size of a large SAE on a GPU, in bfloat16 as far as each library does that:

python -m bench.peers --device cuda --autocast --d-in 2304 --width 65536 --k 64 --batch-tokens 8192
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.libraries import LIBRARIES, OURS
from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.config import TrainConfig

Step = Callable[[torch.Tensor], Any]
CASES = [
    ("sparsify", "topk", "float32"), ("dictionary_learning", "topk", "float32"),
    *(("SAELens", architecture, "float32") for architecture in ("topk", "batchtopk", "matryoshka")),
    *((OURS, architecture, chosen) for architecture in ("topk", "batchtopk") for chosen in ("bfloat16", "float32")),
    (OURS, "matryoshka", "bfloat16"),
]  # fmt: skip


def step_of(library: str, architecture: str, selection: str, options: argparse.Namespace, x: torch.Tensor) -> Step:
    config = TrainConfig(
        options.width, 10**9, architecture, {"k": options.k}, batch_tokens=len(x), lr=1e-3, selection=selection,
        log_every=10**6,
    )  # fmt: skip
    step = LIBRARIES[library](config, x).step
    if not options.autocast or library == OURS:
        return step

    def in_bfloat16(x: torch.Tensor) -> None:
        with torch.autocast(x.device.type, torch.bfloat16):
            step(x)

    return in_bfloat16


def now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"batch-tokens": 4096, "d-in": 384, "width": 6144, "k": 32, "rounds": 5, "steps": 3, "threads": 1}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autocast", action="store_true", help="the others multiply in bfloat16, by torch.autocast")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batches = torch.randn(4, options.batch_tokens, options.d_in).to(options.device)
    steps: dict[str, Step] = {}
    for library, architecture, chosen in CASES:
        name = f"{library} {ARCHITECTURES[architecture].label}" + (f" {chosen}" if library == OURS else "")
        steps[name] = step_of(library, architecture, chosen, options, batches[0])
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            for turn in range(options.steps + 1):
                started = now(options.device)
                step(batches[turn % len(batches)])
                if turn:
                    times[name].append(now(options.device) - started)
    print(f"{vars(options)}, ms per step, and SAELens' and sparsify's TopK as multiples of it")
    medians = {name: 1000 * statistics.median(spent) for name, spent in times.items()}
    for name, ms in medians.items():
        print(f"{name:28s} {ms:8.0f} ms {medians['SAELens TopK'] / ms:6.2f} {medians['sparsify TopK'] / ms:6.2f}")


if __name__ == "__main__":
    main()
