"""A training run on disk, exactly: weights, Adam's moments, counters and the step, which is the stream's
position.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.ml import store
from jobs.ml.checkpoint_files import checkpoints, read_whole, sae_files
from jobs.ml.train import Run, Trainer

KEEP = 2
RULES = 3  # what a step does: one more whenever the same configuration comes to other weights
COUNTERS = ("silent", "dead", "bad_step")


def save(run: Run[Any], folder: Path | str) -> Path:
    """Adds the folder `step-<number>`, whole or not at all, and removes all but the newest two. Raises
    Diverged where no SAE is left that learns.
    """
    run.check()
    path = Path(folder) / f"step-{run.step:09d}"
    with store.replacing(path) as temporary:
        temporary.mkdir()
        files = sae_files(temporary, len(run.trainers))
        for file, trainer in zip(files, run.trainers, strict=True):
            store.write_tensors(file, {name: numbers(value) for name, value in state_tensors(trainer).items()})
        store.write_json(
            temporary / "state.json",
            {
                "run": identity(run),
                "step": run.step,
                "scales": [trainer.scales for trainer in run.trainers],
                "stopped": run.stopped,
                "seconds": run.seconds,
                "sha256": [store.sha256(file) for file in files],
            },
        )
    for old in checkpoints(Path(folder))[:-KEEP]:
        shutil.rmtree(old)
    return path


def resume(run: Run[Any], folder: Path | str) -> bool:
    """Puts a new run where the newest whole checkpoint of the same run was. False where there is none:
    those of other runs are removed, they would push out what this one saves.
    """
    mine = identity(run)
    for path in reversed(checkpoints(Path(folder))):
        state = read_whole(path)
        if state is None or state["run"] != mine:  # torn by a crash of the machine: an older one may be whole
            continue
        files = sae_files(path, len(run.trainers))
        for trainer, file, scales in zip(run.trainers, files, state["scales"], strict=True):
            restore(trainer, store.read_tensors(file))
            trainer.scales = scales
        run.step, run.stopped, run.seconds = state["step"], state["stopped"], state["seconds"]
        return True
    for path in checkpoints(Path(folder)):
        shutil.rmtree(path)
    return False


def identity(run: Run[Any]) -> dict[str, Any]:
    """What decides the weights of a run: its SAEs, which activations they are trained on, and how."""
    members = [
        {"config": one.config.decisive(), "reads": list(one.reads), "writes": list(one.writes)}
        for one in (trainer.member for trainer in run.trainers)
    ]
    return {"members": members, "stream": run.stream.identity(), "rules": RULES}


def state_tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Of an SAE that diverged nothing is worth keeping but that it did."""
    if trainer.diverged is not None:
        return {"bad_step": trainer.bad_step}
    tensors = {f"sae.{name}": value for name, value in trainer.sae.state_dict().items()}
    for name, parameter in trainer.sae.named_parameters():
        for moment, value in trainer.optimizer.state[parameter].items():
            tensors[f"adam.{name}.{moment}"] = value
    return tensors | {name: getattr(trainer, name) for name in COUNTERS}


def restore(trainer: Trainer, arrays: dict[str, np.ndarray]) -> None:
    tensors = {name: torch.tensor(array, device=trainer.device) for name, array in arrays.items()}
    trainer.bad_step = tensors["bad_step"]
    if trainer.look() is not None:
        return
    trainer.sae.load_state_dict(
        {name.removeprefix("sae."): value for name, value in tensors.items() if name.startswith("sae.")}
    )
    for name, parameter in trainer.sae.named_parameters():
        prefix = f"adam.{name}."
        trainer.optimizer.state[parameter] = {
            key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
        }
    for name in COUNTERS:
        setattr(trainer, name, tensors[name])
    trainer.dead_latents = trainer.dead.nonzero().flatten()


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
