"""The tokenizer of a model's folder. Needs no PyTorch."""

from pathlib import Path
from typing import Any

from jobs.ml.errors import CorruptData


def load_tokenizer(folder: Path | str) -> Any:
    """Raises CorruptData where the folder has no tokenizer that transformers can read."""
    from transformers import AutoTokenizer  # late: it takes a second

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged tokenizer.json
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CorruptData(f"the folder has no tokenizer that can be read: {said}") from error
