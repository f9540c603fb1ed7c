import json
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=8)
def _read(path: Path, changed_ns: int) -> list[str]:
    pieces: list[str] = json.loads(path.read_text())
    return pieces


def read_vocabulary(model_folder: Path) -> list[str]:
    """The readable piece of each token id, as the model's registration wrote it: needs no tokenizer."""
    path = model_folder / "vocabulary.json"
    return _read(path, path.stat().st_mtime_ns) if path.exists() else []


def piece(pieces: list[str], token: int) -> str:
    """What is shown of a token; of one beyond the vocabulary its id."""
    return pieces[token] if 0 <= token < len(pieces) else f"[{token}]"
