"""A training run on disk, exactly: weights, Adam's moments, counters and the step, which is the stream's
position.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.ml import store
from jobs.ml.train import Trainer

KEEP = 2
NAME = re.compile(r"step-(\d{9})")
COUNTERS = ("silent", "dead", "bad_step")


def save(trainer: Trainer, folder: Path | str) -> Path:
    """Adds the folder `step-<number>`, whole or not at all, and removes all but the newest two. Raises
    Diverged.
    """
    trainer.check()
    path = Path(folder) / f"step-{trainer.step:09d}"
    with store.replacing(path) as temporary:
        temporary.mkdir()
        tensors = temporary / "state.safetensors"
        store.write_tensors(tensors, {name: numbers(value) for name, value in state_tensors(trainer).items()})
        store.write_json(
            temporary / "state.json",
            {
                "run": identity(trainer),
                "step": trainer.step,
                "scale": trainer.scale,
                "stopped": trainer.stopped,
                "seconds": trainer.seconds,
                "sha256": store.sha256(tensors),
            },
        )
    for old in checkpoints(Path(folder))[:-KEEP]:
        shutil.rmtree(old)
    return path


def resume(trainer: Trainer, folder: Path | str) -> bool:
    """Puts a new trainer where the newest whole checkpoint of the same run was. False where there is none:
    those of other runs are removed, they would push out what this one saves.
    """
    mine = identity(trainer)
    for path in reversed(checkpoints(Path(folder))):
        try:
            state = store.read_json(path / "state.json")
            if store.sha256(path / "state.safetensors") != state["sha256"]:
                continue
        except (OSError, ValueError, KeyError):  # torn by a crash of the machine: an older one may be whole
            continue
        if state["run"] != mine:
            continue
        restore(trainer, store.read_tensors(path / "state.safetensors"))
        trainer.step, trainer.scale = state["step"], state["scale"]
        trainer.stopped, trainer.seconds = state["stopped"], state["seconds"]
        return True
    for path in checkpoints(Path(folder)):
        shutil.rmtree(path)
    return False


def identity(trainer: Trainer) -> dict[str, Any]:
    """What decides the weights of a run: its config, and which activations it is trained on."""
    return {"config": trainer.config.decisive(), "stream": trainer.stream.identity()}


def checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path for path in folder.glob("step-*") if NAME.fullmatch(path.name))


def state_tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    tensors = {f"sae.{name}": value for name, value in trainer.sae.state_dict().items()}
    for name, parameter in trainer.sae.named_parameters():
        for moment, value in trainer.optimizer.state[parameter].items():
            tensors[f"adam.{name}.{moment}"] = value
    return tensors | {name: getattr(trainer, name) for name in COUNTERS}


def restore(trainer: Trainer, arrays: dict[str, np.ndarray]) -> None:
    tensors = {name: torch.tensor(array, device=trainer.device) for name, array in arrays.items()}
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
