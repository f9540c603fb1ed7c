"""Each library at its best learning rate, at the same L0: what quality.py and ground_truth.py have in common.

Each library has the learning rates of `--rates`, and where those are several then half the lowest or twice the highest
as long as that is its best by held-out FVU, and at last the best one times and by the root of 2. Where no k says how
many latents are active, the option that decides it is sought for each rate until L0 is near k, and the FVU at k is read
off the line through the two runs nearest to it, in logarithms. At its best rate each library begins again with the
other seeds of `--seeds`: what is told is the mean.

With `--runs` every run becomes a line of that file, and is not made again where it is there already.
"""

import argparse
import json
import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.libraries import LIBRARIES, OURS, TRAINS, Learner, measure
from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.checkpoint import RULES
from jobs.ml.config import TrainConfig

L0_LOSS = "step"  # of JumpReLU, here and in SAELens: rows may differ in L0, as they may in dictionary_learning's
NEAR = 0.05  # of log L0 to log k, at most
TRIES = 4  # runs to get there
WIDENED = 3  # rates that are added, at most
Run = dict[str, Any]


@dataclass
class Sweep:
    options: argparse.Namespace
    data: str  # what they are activations of
    train: Sequence[Tensor]  # batches, in this order
    held_out: Sequence[Tensor]
    also: Callable[[Learner], dict[str, Any]] = lambda learner: {}  # what else is measured

    def run(self, library: str, architecture: str, lr: float, seed: int, own: dict[str, Any]) -> Run:
        """What came of a training, from the file where it is known."""
        options, file = self.options, Path(self.options.runs or os.devnull)
        config = TrainConfig(
            options.width, options.tokens, architecture, own, batch_tokens=options.batch_tokens, lr=lr, seed=seed
        )
        made = {
            "library": library, "architecture": architecture, "lr": lr, "seed": seed, "own": config.options,
            "rules": RULES if library == OURS else None, "data": self.data,
            **{name: getattr(options, name) for name in ("width", "tokens", "batch_tokens", "held_out")},
        }  # fmt: skip
        known = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        if found := [run for run in known if made.items() <= run.items()]:
            return found[0]
        learner = LIBRARIES[library](config, self.train[0])
        for x in self.train:
            learner.step(x)
        run = {**made, **measure(learner, self.held_out), **self.also(learner)}
        with file.open("a") as out:
            out.write(json.dumps(run) + "\n")
        return run

    def at_k(self, library: str, architecture: str, lr: float, seed: int, aim: dict[str, float]) -> Run:
        """A run with L0 = k. aim: the option that decides L0; where to begin to seek it, then where it was found."""
        if not aim:
            return self.run(library, architecture, lr, seed, {"k": self.options.k})
        (name,) = aim
        tried: list[Run] = []
        while len(tried) < TRIES:
            tried.append(self.run(library, architecture, lr, seed, self.fixed(architecture) | aim))
            tried.sort(key=lambda run: abs(self.miss(run)))
            if abs(self.miss(tried[0])) < NEAR:
                break
            aim[name] = self.next_aim(name, tried)
        aim[name] = tried[0]["own"][name]
        return {**tried[0], "fvu": self.fvu_at_k(tried)}

    def miss(self, run: Run) -> float:
        return math.log(max(run["l0"], 0.1) / self.options.k)

    def next_aim(self, name: str, tried: list[Run]) -> float:
        """By the secant through the two runs nearest to k, in logarithms; of one run, by what is usual."""
        slope, value = 1.0 if name == "target_l0" else -1.0, tried[0]["own"][name]
        if len(tried) > 1 and self.miss(tried[1]) != self.miss(tried[0]):
            slope = (self.miss(tried[1]) - self.miss(tried[0])) / math.log(tried[1]["own"][name] / value)
        return float(value * math.exp(max(-1.5, min(1.5, -self.miss(tried[0]) / slope))))

    def fvu_at_k(self, tried: list[Run]) -> float:
        if len(tried) == 1 or self.miss(tried[0]) == self.miss(tried[1]):
            return float(tried[0]["fvu"])
        (a, fvu_a), (b, fvu_b) = ((self.miss(run), math.log(run["fvu"])) for run in tried[:2])
        return math.exp(fvu_a - a * (fvu_b - fvu_a) / (b - a))

    def fixed(self, architecture: str) -> dict[str, Any]:
        """What is told to all libraries, whatever L0 is sought."""
        fixed: dict[str, Any] = {"l0_loss": L0_LOSS} if architecture == "jumprelu" else {}
        if self.options.warmup is not None and "sparsity_warmup_share" in ARCHITECTURES[architecture].presets:
            fixed["sparsity_warmup_share"] = self.options.warmup
        return fixed

    def aim(self, library: str, architecture: str) -> dict[str, float]:
        """The option that decides L0 where k does not, and what is tried first."""
        if architecture == "jumprelu" and library == "dictionary_learning":
            return {"target_l0": float(self.options.k)}
        presets = ARCHITECTURES[architecture].presets
        return {name: float(presets[name]) for name in ("l1_coefficient", "l0_coefficient") if name in presets}

    def best(self, library: str, architecture: str) -> tuple[list[Run], list[Run]]:
        """The runs at the best rate, one for each seed, and those of the first seed at the others."""
        (seed, *seeds), aim = self.options.seeds, self.aim(library, architecture)
        found: dict[float, Run] = {}
        rates = list(self.options.rates)
        while rates and len(found) < len(self.options.rates) + WIDENED:
            lr = rates.pop(0)
            found[lr] = self.at_k(library, architecture, lr, seed, aim)
            best = min(found, key=lambda lr: found[lr]["fvu"])
            if not rates and len(found) > 1 and best in (min(found), max(found)):
                rates.append(best / 2 if best == min(found) else best * 2)
        for lr in (best / math.sqrt(2), best * math.sqrt(2)) if len(found) > 1 else ():
            lr = float(f"{lr:.2g}")
            found[lr] = self.at_k(library, architecture, lr, seed, aim)
        best = min(found, key=lambda lr: found[lr]["fvu"])
        first = found.pop(best)
        aim = {name: first["own"][name] for name in aim}
        again = [self.at_k(library, architecture, best, seed, aim) for seed in seeds]
        return [first, *again], sorted(found.values(), key=lambda run: run["lr"])

    def table(self, columns: Sequence[str]) -> None:
        """A row for each architecture and library: means over the seeds, and the FVU of each where they are several."""
        heads = ["architecture", "library", *columns, "learning rate", "FVU of each seed", "FVU at other rates"]
        print("|", " | ".join(heads), "|\n" + "|---" * len(heads) + "|")
        for architecture in self.options.architectures:
            for library in self.options.libraries:
                if architecture in TRAINS[library]:
                    runs, others = self.best(library, architecture)
                    cells = [ARCHITECTURES[architecture].label, library]
                    cells += [told(name, [run[name] for run in runs]) for name in columns]
                    cells += [f"{runs[0]['lr']:.2g}", ", ".join(f"{run['fvu']:.4f}" for run in runs)]
                    cells += [", ".join(f"{run['lr']:.2g}: {run['fvu']:.4f}" for run in others)]
                    print("|", " | ".join(cells), "|", flush=True)


def told(column: str, values: Sequence[float | None]) -> str:
    """The mean; – where it was not measured."""
    known = [value for value in values if value is not None]
    return COLUMNS[column].format(statistics.mean(known)) if known else "–"


COLUMNS = {"mmcs": "{:.3f}", "mcc": "{:.3f}", "found": "{:.1%}", "fvu": "{:.4f}", "l0": "{:.1f}", "dead": "{:.1%}"}


def read_options(
    description: str | None, rates: list[float], sizes: dict[str, int], libraries: list[str]
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="*", default=list(TRAINS[OURS]), choices=TRAINS[OURS])
    parser.add_argument("--libraries", nargs="*", default=libraries, choices=LIBRARIES)
    parser.add_argument("--rates", nargs="*", type=float, default=rates)
    parser.add_argument("--runs", help="a file")
    parser.add_argument("--warmup", type=float, help="share of the steps over which penalties rise; else the presets'")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    for name, value in {**sizes, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(vars(options), flush=True)
    return options
