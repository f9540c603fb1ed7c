"""What the checkpoints of a training look like on disk: folders `step-<number>`, each with a file for each SAE and
state.json, which has their checksums. Needs no torch."""

import re
from pathlib import Path
from typing import Any

from jobs.ml import store

NAME = re.compile(r"step-(\d{9})")


def checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path for path in folder.glob("step-*") if NAME.fullmatch(path.name))


def sae_files(path: Path, n: int) -> list[Path]:
    return [path / f"sae-{number}.safetensors" for number in range(n)]


def read_whole(path: Path) -> dict[str, Any] | None:
    """Its state.json, where all files are what they were when it was written. None for one that a crash of the machine
    has torn."""
    try:
        state: dict[str, Any] = store.read_json(path / "state.json")
        whole = [store.sha256(file) for file in sae_files(path, len(state["sha256"]))] == state["sha256"]
    except (OSError, ValueError, KeyError):
        return None
    return state if whole else None
