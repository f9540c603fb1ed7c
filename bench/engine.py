"""What the engine does in a second, step by step, and what its own ideas are worth: python -m bench.engine --help

Figures are tokens per second of wall time and of processor time, each the best of `--rounds`: the machine may be busy.
"""

import argparse
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from jobs.ml import training
from jobs.ml.architectures.topk import TopK
from jobs.ml.config import SELECTIONS, Member, TrainConfig
from jobs.ml.documents import read_documents
from jobs.ml.evaluate import evaluate
from jobs.ml.language_model import load_model
from jobs.ml.packing import pack
from jobs.ml.revival import revive
from jobs.ml.sae import Moment, squared_error
from jobs.ml.scan import scan
from jobs.ml.support import Dense
from jobs.ml.tokenizer import load_tokenizer
from jobs.ml.tokens import TokenShards

MODEL_FOLDER = Path(__file__).parent.parent / "mistudio/demo/model"
Clock = tuple[float, float]  # wall and processor seconds


def best(work: Callable[[], object], rounds: int) -> Clock:
    times = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(wall for wall, _ in times), min(cpu for _, cpu in times)


def report(name: str, tokens: int, clock: Clock) -> None:
    wall, cpu = clock
    print(f"{name:34s} {tokens / wall:12,.0f} tokens/s {1e6 * cpu / tokens:9.1f} µs of processor per token")


def documents_of(folder: str | None) -> Callable[[int], Iterable[str]]:
    if folder:
        return partial(read_documents, folder)
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return lambda start: (path.read_text(errors="replace") for path in sources[start:])


def dense_step(sae: TopK, x: torch.Tensor) -> None:
    """The same TopK loss and gradients through matrices of zeros."""
    norms = sae.decoder_norms().detach()
    a = Dense().encode(x, sae.encoder())
    kept = (a.detach() * norms).topk(sae.k, dim=1, sorted=False).indices
    f = torch.zeros_like(a).scatter(1, kept, a.gather(1, kept).relu())
    squared_error(x, F.linear(f, sae.W_dec.T) + sae.b_dec).backward()


def bench_training(options: argparse.Namespace, tokens_folder: str) -> TopK:
    config = TrainConfig(
        options.width, options.tokens, options={"k": options.k}, batch_tokens=options.batch_tokens,
        selection=options.selection,
    )  # fmt: skip
    run = training.begin(
        [Member(config, (options.site,))], model_folder=options.model, tokens_folder=tokens_folder, seed=0,
        buffer_tokens=options.buffer_tokens, model_batch=options.model_batch, skip_special=True, dtype="float32",
        selection=options.selection, begun=Path(tokens_folder) / "begun.json",
    )  # fmt: skip
    stream, n, trainer = run.stream, options.batch_tokens, run.trainers[0]
    chunks = iter(range(10**9))
    steps_per_chunk = -(-options.buffer_tokens // n)
    clock = best(lambda: stream.batch(next(chunks) * steps_per_chunk), options.rounds)
    report("capture at the site", len(stream.sample()[options.site]), clock)
    batch = stream.batch(0)
    trainer.begin(stream.sample(), batch)
    x, _ = trainer.scaled(batch)
    sae = trainer.sae
    assert isinstance(sae, TopK)
    report("train step", n, best(lambda: trainer.update(batch, 1), options.rounds))
    moment = Moment(config, 1, torch.empty(0, dtype=torch.long))
    sparse = best(lambda: sae.fit(x, x, sae.support(x, trainer.selection), moment).loss.backward(), options.rounds)
    dense = best(lambda: dense_step(sae, x), options.rounds)
    report("  gradients, sparse", n, sparse)
    report("  gradients, dense", n, dense)
    print(
        f"  sparse is {dense[1] / sparse[1]:.1f} times as fast as dense in processor time, "
        f"{dense[0] / sparse[0]:.1f} in wall time"
    )
    dead, residual = torch.arange(min(300, options.width), device=x.device), torch.randn_like(x)
    report("  reviving 300 dead latents", n, best(lambda: revive(sae, x, residual, dead).backward(), options.rounds))
    folded = trainer.export()
    assert isinstance(folded, TopK)
    return folded.requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(MODEL_FOLDER), help="folder of a language model")
    parser.add_argument("--dataset", help="folder of a dataset that was added; else the sources of Python's library")
    parser.add_argument("--site", default="blocks.2.hook_resid_pre")
    for name, value in {
        "context": 128, "width": 2048, "k": 32, "batch-tokens": 4096, "buffer-tokens": 2**15, "model-batch": 8,
        "tokens": 1_500_000, "scan-tokens": 100_000, "threads": torch.get_num_threads(), "rounds": 3,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--selection", default="float32", choices=SELECTIONS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{options.threads} threads, context {options.context}, width {options.width}, k {options.k}, "
        f"batch {options.batch_tokens}"
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer = load_tokenizer(options.model)
        counts: dict[str, int] = {}

        def tokenize() -> None:
            counts.update(pack(
                documents_of(options.dataset), tokenizer, folder / "tokens",
                context_length=options.context, seed=0,
            ))  # fmt: skip

        clock = best(tokenize, 1)
        report("tokenize and pack", counts["document_tokens"], clock)
        sae = bench_training(options, str(folder / "tokens"))
        model, held_out = load_model(options.model, str(sae.W_dec.device)), TokenShards(folder / "tokens", "held_out")
        n = options.scan_tokens
        clock = best(lambda: scan(model, sae, options.site, held_out, folder / "scan", tokens=n), 1)
        report("scan", min(n, held_out.n_tokens), clock)
        clock = best(lambda: evaluate(model, sae, options.site, held_out, tokens=n, ce_tokens=n // 4), 1)
        report("evaluate, a quarter with losses", min(n, held_out.n_tokens), clock)


if __name__ == "__main__":
    main()
