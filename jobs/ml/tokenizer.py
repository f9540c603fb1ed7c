"""The tokenizer of a model's folder. Needs no PyTorch."""

from pathlib import Path
from typing import Any

from jobs.ml import model_config
from jobs.ml.errors import CorruptData, Unusable


def load_tokenizer(folder: Path | str) -> Any:
    """Raises CorruptData where the folder has no tokenizer that transformers can read, Unusable for a program."""
    from transformers import AutoTokenizer  # late: it takes a second

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged tokenizer.json
        if code := foreign_tokenizer(Path(folder) / "tokenizer_config.json"):
            raise Unusable(
                f"the tokenizer is a program of its own ({code}), which is never run",
                "Choose a copy of the model with a tokenizer that transformers has.",
            ) from error
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CorruptData(f"the folder has no tokenizer that can be read: {said}") from error


def foreign_tokenizer(path: Path) -> str:
    try:
        return model_config.foreign_code(model_config.parse(path.read_bytes()))
    except (OSError, CorruptData):
        return ""
