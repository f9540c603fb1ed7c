"""What one of several processes does for test_parallel.py. As a script: torchrun … ranks.py <tokens> <folder>."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from jobs.ml import checkpoint, parallel
from jobs.ml.activations import ActivationStream
from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.parallel import ALONE, Ranks
from jobs.ml.tokens import TokenShards
from jobs.ml.train import Run
from tests.ml.test_train import OTHERS, of_all
from tests.ml.tiny import tiny_model

SITES = [*OTHERS["reads"], *OTHERS["writes"]]
SHARED = list(ARCHITECTURES)
UNTIL = 13  # steps, where the run is left and resumed


def stream(tokens: Path | str, ranks: Ranks = ALONE) -> ActivationStream:
    return ActivationStream(
        tiny_model("llama"), SITES, TokenShards(tokens), batch_tokens=100, buffer_tokens=1500, seed=1, ranks=ranks
    )


def together(tokens: Path | str, ranks: Ranks = ALONE) -> Run:
    """SAEs of all architectures, each trained by all processes."""
    return Run([of_all(name) for name in SHARED], stream(tokens, ranks), ranks=ranks)


def dealt(tokens: Path | str, ranks: Ranks = ALONE) -> Run:
    """Each process trains some of the SAEs by itself, all on the forward passes that they share."""
    return Run([of_all(name) for name in SHARED[ranks.rank :: ranks.size]], stream(tokens, ranks))


def ended(run: Run, until: int | None = None) -> list[dict[str, torch.Tensor]]:
    """The metrics of each SAE in the last step that was logged."""
    last = []
    for tick in run.run():
        last = [{name: torch.tensor(value) for name, value in one.items()} for one in tick.metrics] or last
        if until is not None and tick.step >= until:
            break
    return last


def kept(run: Run, last: list[dict[str, torch.Tensor]], path: Path) -> None:
    states = [checkpoint.state_tensors(trainer) for trainer in run.trainers]
    tensors = {f"{n}.{name}": value for n, state in enumerate(states) for name, value in state.items()}
    metrics = {f"{n}.metric.{name}": value for n, one in enumerate(last) for name, value in one.items()}
    save_file({name: value.detach().contiguous().clone() for name, value in {**tensors, **metrics}.items()}, path)


def main(tokens: str, folder: Path) -> None:
    ranks = parallel.join()
    torch.set_num_threads(1)
    run = together(tokens, ranks)
    kept(run, ended(run), folder / f"through-{ranks.rank}.safetensors")
    left = together(tokens, ranks)
    ended(left, UNTIL)
    if ranks.first:
        checkpoint.save(left, folder / "checkpoints")
    again = together(tokens, ranks)
    with ranks.first_goes_first():
        assert checkpoint.resume(again, folder / "checkpoints") and again.step == UNTIL
    kept(again, ended(again), folder / f"resumed-{ranks.rank}.safetensors")
    alone = dealt(tokens, ranks)
    kept(alone, ended(alone), folder / f"dealt-{ranks.rank}.safetensors")
    parallel.leave()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
