"""From text to a trained SAE, here and by SAELens' runner: text, tokens, the bundled model, a TopK at one site.

/path/to/python -m bench.end_to_end, with a Python that has sae-lens beside miStudio's dependencies

Tokens per second from the text in memory to the last step, medians of `--rounds` for each of `--rates`, in turns, by
wall and by processor time, each route in a process of its own: ours with the settings of the allocator that a job has,
the others as they are; all with those of the command, where it is given some in GLIBC_TUNABLES. The model is loaded
before, and here its fastest precision and number of sequences are found: that is kept on disk and done once. SAELens
runs the same weights by transformers, as it stands and with its autocast for model and SAE. Its buffer and ours hold
eight batches: its default is less than one where contexts are short. FVU, of each route's SAE at each learning rate: on
the same activations, in float32, of documents that none has seen.
"""

import argparse
import contextlib
import io
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from bench.quality import MODEL_FOLDER, SITE
from jobs.ml import allocator, training
from jobs.ml.activations import ActivationStream
from jobs.ml.config import AUTO, Member, TrainConfig
from jobs.ml.language_model import load_model
from jobs.ml.packing import pack
from jobs.ml.tokenizer import load_tokenizer
from jobs.ml.tokens import TokenShards
from mistudio.demo.corpus import documents

MODULE = "model.layers.1"  # whose output is the site
UNSEEN, UNSEEN_FILE = 50, "unseen.pt"  # documents; their activations
CHARACTERS = 5  # for one token, more than there are in the mean
BUFFER = 8  # batches
Sae = Callable[[Tensor], Tensor]
Clock = tuple[float, float]  # wall and processor seconds
Trial = tuple[float, float, float]  # the same, and FVU


@contextlib.contextmanager
def timed(clocks: list[Clock]) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    clocks.append((time.perf_counter() - wall, time.process_time() - cpu))


def ours(options: argparse.Namespace, lr: float, texts: list[str], folder: Path, clocks: list[Clock]) -> Sae:
    config = TrainConfig(
        options.width, options.tokens, options={"k": options.k}, batch_tokens=options.batch_tokens, lr=lr
    )
    tokenizer, tokens = load_tokenizer(folder / "model"), Path(tempfile.mkdtemp(dir=folder))
    with timed(clocks):
        pack(lambda n: texts[n:], tokenizer, tokens, context_length=options.context, held_out=0.0)
    run = training.begin(
        [Member(config, (SITE,))], model_folder=str(folder / "model"), tokens_folder=str(tokens), seed=20_000,
        buffer_tokens=BUFFER * options.batch_tokens, model_batch=None, skip_special=True, dtype=AUTO, selection=AUTO,
        begun=tokens / "begun.json",
    )  # fmt: skip
    with timed(clocks):
        for _ in run.run():
            pass
    return run.trainers[0].export()


def saelens(
    options: argparse.Namespace, lr: float, texts: list[str], folder: Path, clocks: list[Clock], autocast: bool
) -> Sae:
    from datasets import Dataset
    from sae_lens import (
        LanguageModelSAERunnerConfig,
        LanguageModelSAETrainingRunner,
        LoggingConfig,
        TopKTrainingSAEConfig,
    )
    from sae_lens.load_model import HookedProxyLM

    model, steps = load_model(folder / "model"), options.tokens // options.batch_tokens
    config = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(
            d_in=model.config.hidden_size, d_sae=options.width, k=options.k,
            normalize_activations="expected_average_only_in",
        ),
        model_name="bundled", model_class_name="AutoModelForCausalLM", hook_name=MODULE, dataset_path="",
        streaming=False, is_dataset_tokenized=False, context_size=options.context, training_tokens=options.tokens,
        train_batch_size_tokens=options.batch_tokens, store_batch_size_prompts=32, exclude_special_tokens=True,
        n_batches_in_buffer=BUFFER * options.batch_tokens // options.context, n_batches_for_norm_estimate=BUFFER,
        lr=lr, lr_warm_up_steps=steps // 20, lr_decay_steps=steps // 5, autocast=autocast, autocast_lm=autocast,
        device="cpu", output_path=None, checkpoint_path=None, logger=LoggingConfig(log_to_wandb=False), verbose=False,
    )  # fmt: skip
    runner = LanguageModelSAETrainingRunner(
        config, override_dataset=Dataset.from_dict({"text": texts}),
        override_model=HookedProxyLM(model, load_tokenizer(folder / "model"), hook_names=[MODULE]),
    )  # fmt: skip
    with timed(clocks), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        sae = runner.run()
    return sae.eval()


def texts_of(tokens: int) -> tuple[list[str], list[str]]:
    """Those to measure on, and enough to train on this many tokens."""
    texts = [document.text for document in documents()]
    lengths = accumulate(len(text) for text in texts[UNSEEN:])
    return texts[:UNSEEN], texts[UNSEEN : UNSEEN + 1 + sum(length < CHARACTERS * tokens for length in lengths)]


def unseen(texts: list[str], folder: Path, context: int) -> Tensor:
    """Activations [tokens, D] of texts, in float32."""
    tokenizer = load_tokenizer(folder / "model")
    pack(lambda n: texts[n:], tokenizer, folder / "unseen", context_length=context, held_out=0.0)
    shards = TokenShards(folder / "unseen")
    stream = ActivationStream(load_model(folder / "model"), SITE, shards, buffer_tokens=shards.n_tokens)
    stream.batch(0)
    return stream.sample()[SITE].clone()


def process(threads: int, environment: Mapping[str, str]) -> ProcessPoolExecutor:
    """One that is started with these variables beside those of this process."""
    before = dict(os.environ)
    os.environ.update(environment)
    pool = ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (threads,))
    try:
        pool.submit(int).result()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return pool


def trial(route: Callable[..., Sae], options: argparse.Namespace, lr: float, texts: list[str], folder: Path) -> Trial:
    clocks: list[Clock] = []
    sae = route(options, lr, texts, folder, clocks)
    error = fvu(sae, torch.load(folder / UNSEEN_FILE))
    return sum(wall for wall, _ in clocks), sum(cpu for _, cpu in clocks), error


@torch.no_grad()
def fvu(sae: Sae, x: Tensor) -> float:
    return float((x - sae(x)).double().square().sum() / (x - x.double().mean(0)).square().sum())


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "tokens": 2**19, "batch-tokens": 4096, "width": 2048, "k": 32, "context": 128, "rounds": 1,
        "threads": torch.get_num_threads(),
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rates", nargs="*", type=float, default=[2e-3, 4e-3, 8e-3])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    held_out, texts = texts_of(options.tokens)
    routes: dict[str, tuple[Callable[..., Sae], Mapping[str, str]]] = {
        "miStudio": (ours, allocator.environment()),
        "SAELens": (partial(saelens, autocast=False), {}),
        "SAELens, autocast": (partial(saelens, autocast=True), {}),
    }
    found: dict[str, list[Trial]] = {name: [] for name in routes}
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = Path(place)
        shutil.copytree(MODEL_FOLDER, folder / "model")
        x = unseen(held_out, folder, options.context)
        torch.save(x, folder / UNSEEN_FILE)
        pools = {name: stack.enter_context(process(options.threads, own)) for name, (_, own) in routes.items()}
        for lr in options.rates * options.rounds:
            for name, (route, _) in routes.items():
                found[name].append(pools[name].submit(trial, route, options, lr, texts, folder).result())
    print(f"{vars(options)}, FVU on {len(x):,} tokens")
    walls, cpus = ({name: statistics.median(one[n] for one in found[name]) for name in routes} for n in (0, 1))
    for name in routes:
        wall, cpu = (times[name] / times["miStudio"] for times in (walls, cpus))
        errors = [f"{lr:g}: {error:.4f}" for lr, (*_, error) in zip(options.rates, found[name], strict=False)]
        print(
            f"{name:20s} {options.tokens / walls[name]:10,.0f} tokens/s "
            f"{1e6 * cpus[name] / options.tokens:8.1f} µs of processor per token; takes {wall:5.2f} times as long as "
            f"here, {cpu:5.2f} of the processor; FVU {', '.join(errors)}"
        )


if __name__ == "__main__":
    main()
