"""Whether the files of a model are what they were when it was added. Needs nothing but the standard library."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jobs.ml.errors import CorruptData
from jobs.ml.store import read_json_if_there, sha256

DAMAGED = "damaged.json"  # file name → what is wrong with it; there as long as something is
MADE = "vocabulary.json"  # made from the tokenizer, and needed by every page that shows tokens
HINT = "Fetch the model again from its page, or with restore_model: only what is damaged is fetched."


def lost(folder: Path, files: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Name → what is wrong, of files [{"name", "bytes"}] that are gone or of another size. Reads none of them."""
    return {file["name"]: wrong for file in files if (wrong := wrong_size(folder / file["name"], file["bytes"]))}


def wrong_size(path: Path, expected: int) -> str:
    try:
        size = path.stat().st_size
    except OSError:
        return "is missing"
    return "" if size == expected else f"has {size:,} bytes where it had {expected:,}"


def examine(folder: Path, files: Iterable[dict[str, Any]], advance: Callable[[int], None]) -> dict[str, str]:
    """Name → what is wrong, of files [{"name", "bytes", "sha256"}]. Reads them all; `advance` may raise to stop."""
    found = {}
    for file in files:
        path = folder / file["name"]
        if wrong := wrong_size(path, file["bytes"]):
            advance(file["bytes"])
        elif sha256(path, advance) != file["sha256"]:
            wrong = "has other content: its SHA-256 is not the one it had when the model was added"
            if others := sharing(path):
                wrong += f". On the disk it is one file with that of model {', '.join(others)}: verify there too"
        if wrong:
            found[file["name"]] = wrong
    return found


def sharing(path: Path) -> list[str]:
    """The folders beside that have this very file too: they were given a link to it, or it to theirs."""
    facts = path.stat()
    found = path.parent.parent.glob("*/*") if facts.st_nlink > 1 else ()
    return sorted(
        {other.parent.name for other in found if other.parent != path.parent and os.path.samestat(other.stat(), facts)}
    )


def require_whole(folder: Path) -> None:
    """Before a model is used: by what the last verification found, and by the sizes in its manifest. Raises
    CorruptData."""
    found = read_json_if_there(folder / DAMAGED) or lost(
        folder, read_json_if_there(folder / "manifest.json").get("files", ())
    )
    if found:
        said = ", ".join(f"{name} {wrong}" for name, wrong in found.items())
        raise CorruptData(f"The language model in {folder} is damaged: {said}.", HINT)
