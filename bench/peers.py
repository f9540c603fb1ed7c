"""Training steps here and in the libraries of others, on the same batches, turn by turn:

/path/to/python -m bench.peers, with a Python that has torch, sae-lens, eai-sparsify and dictionary-learning beside
miStudio's dependencies

Milliseconds of processor time per step, with several threads of wall time, on a GPU until it is done; medians over
`--rounds` of `--steps` each. The step before them is not counted: in it a library takes back the memory that the one
before it gave up. What a step is: libraries.py. The size of a large SAE on a GPU, in bfloat16 as far as each library
does that:

python -m bench.peers --device cuda --autocast --d-in 2304 --width 65536 --k 64 --batch-tokens 8192

With `--few` those architectures in which a row may have any number of active latents, once few are: the biases of each
are lowered until k are, and it learns so slowly that they stay as many.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from bench.libraries import LIBRARIES, OURS, TRAINS, Learner, l0_of, sparsen
from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.config import TrainConfig
from jobs.ml.selection import CHUNK

Case = tuple[str, str, str]  # library, architecture, precision of the selection
CASES: list[Case] = [
    ("SAELens", "topk", "float32"), ("sparsify", "topk", "float32"), ("dictionary_learning", "topk", "float32"),
    *(("SAELens", architecture, "float32") for architecture in ("batchtopk", "matryoshka")),
    *((OURS, architecture, chosen) for architecture in ("topk", "batchtopk") for chosen in ("bfloat16", "float32")),
    (OURS, "matryoshka", "bfloat16"),
]  # fmt: skip
FEW: list[Case] = [
    (library, architecture, chosen)
    for architecture in ("standard", "gated", "jumprelu", "p_anneal")
    for library, chosen in (
        ("SAELens", "float32"), ("dictionary_learning", "float32"), (OURS, "bfloat16"), (OURS, "float32"),
    )
    if architecture in TRAINS[library]
]  # fmt: skip
SAMPLE_ROWS = 512  # on which it is seen how many latents are active


def learner_of(case: Case, options: argparse.Namespace, x: torch.Tensor) -> Learner:
    library, architecture, selection = case
    own = {name: options.k for name in ("k", "target_l0") if name in ARCHITECTURES[architecture].presets}
    config = TrainConfig(
        options.width, 10**9, architecture, own, batch_tokens=len(x), lr=1e-9 if options.few else 1e-3,
        selection=selection, log_every=10**6,
    )  # fmt: skip
    learner = LIBRARIES[library](config, x)
    if options.few:
        sparsen(learner, x[:SAMPLE_ROWS], options.k)
    return learner


def now(device: str) -> float:
    if device == "cpu":
        return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def floor(options: argparse.Namespace, x: torch.Tensor) -> tuple[float, float]:
    """Milliseconds of what no TopK step can do without: the encoder's product in bfloat16, as many rows at a time as
    the engine takes, and a pass over the active rows, of which it takes five."""
    rows = max(1, CHUNK[x.device.type] // options.width)
    part, W = x[:rows].bfloat16(), torch.randn(options.width, options.d_in, device=x.device)
    room, half = torch.empty(len(part), options.width, dtype=part.dtype, device=x.device), W.bfloat16()
    latents = torch.randint(options.width, (len(x), options.k), device=x.device)
    weights = torch.randn(latents.shape, device=x.device)

    def product() -> None:
        for _ in range(0, len(x), len(part)):
            torch.mm(part, half.T, out=room)

    def row_pass() -> None:
        F.embedding_bag(latents, W, mode="sum", per_sample_weights=weights)

    return median(options, product), median(options, row_pass)


def median(options: argparse.Namespace, work: Callable[[], None]) -> float:
    """Milliseconds."""
    spent = []
    for _ in range(options.rounds * options.steps):
        started = now(options.device)
        work()
        spent.append(now(options.device) - started)
    return 1000 * statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"batch-tokens": 4096, "d-in": 384, "width": 6144, "k": 32, "rounds": 5, "steps": 3, "threads": 1}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autocast", action="store_true", help="the others multiply in bfloat16, by torch.autocast")
    parser.add_argument("--few", action="store_true", help="ReLU + L1, gated, JumpReLU, p-anneal, few active")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batches = torch.randn(4, options.batch_tokens, options.d_in).to(options.device)
    learners = {case: learner_of(case, options, batches[0]) for case in (FEW if options.few else CASES)}
    times: dict[Case, list[float]] = {case: [] for case in learners}
    for _ in range(options.rounds):
        for case, learner in learners.items():
            in_bfloat16 = options.autocast and case[0] != OURS
            for turn in range(options.steps + 1):
                started = now(options.device)
                with torch.autocast(batches.device.type, torch.bfloat16, enabled=in_bfloat16):
                    learner.step(batches[turn % len(batches)])
                if turn:
                    times[case].append(now(options.device) - started)
    medians = {case: 1000 * statistics.median(spent) for case, spent in times.items()}
    others, same = (("SAELens", "dictionary_learning"), "own") if options.few else (("SAELens", "sparsify"), "TopK")
    print(f"{vars(options)}, ms per step, L0, and as multiples of the time {' and '.join(others)} with their {same}")
    for (library, architecture, chosen), ms in medians.items():
        name = f"{library} {ARCHITECTURES[architecture].label}" + (f" {chosen}" if library == OURS else "")
        l0 = l0_of(learners[library, architecture, chosen], batches[0])
        beside = [medians.get((other, architecture if options.few else "topk", "float32")) for other in others]
        multiples = "".join(f"{other / ms:7.2f}" if other else f"{'–':>7s}" for other in beside)
        print(f"{name:38s} {ms:8.0f} ms {l0:6.1f} {multiples}")
    product, row_pass = floor(options, batches[0])
    least = product + 5 * row_pass
    print(f"{'no step without':38s} {least:8.0f} ms: product {product:.0f}, 5 passes over rows of {row_pass:.1f}")


if __name__ == "__main__":
    main()
