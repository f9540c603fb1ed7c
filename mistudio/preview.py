"""What a form's tokenization would be like, from a process of its own (see jobs/ml/preview.py)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jobs
from mistudio.models import LanguageModel
from mistudio.models.tokenization import SETTINGS

SECONDS = 30  # of waiting: a busy machine takes longer than the process is allowed to work


def preview(chosen: dict[str, Any], text: str = "") -> dict[str, Any]:
    """`chosen`: what a valid form says. The answer has `refused` and `hint` where there is nothing to be shown."""
    model: LanguageModel = chosen["language_model"]
    request = {
        "model_folder": str(model.folder),
        "dataset_folder": str(chosen["dataset"].folder),
        "config": {name: chosen[name] for name in SETTINGS},
        "text": text,
        "model_context": model.context_length,
        "embeddings": model.vocab_size,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "jobs.ml.preview"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            cwd=Path(jobs.__file__).parent.parent,
            check=True,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"refused": "The preview took too long.", "hint": "Try again when the machine is less busy."}
    except (subprocess.CalledProcessError, ValueError):
        hint = "Try another text, or verify the files of the model."
        return {"refused": "The tokenizer could not read this.", "hint": hint}
    return answer
