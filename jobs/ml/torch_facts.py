"""What PyTorch says of itself and of the GPUs here, as JSON: `python -m jobs.ml.torch_facts`."""

import json
import sys
from typing import Any

import torch


def facts() -> dict[str, Any]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": [gpu(number) for number in range(count)]}


def gpu(number: int) -> dict[str, str]:
    """With an error where it cannot compute: a build of PyTorch knows the GPUs of its time alone."""
    error = ""
    try:
        ones = torch.ones(8, 8, device=f"cuda:{number}")
        if (ones @ ones).sum().item() != 512:
            error = "wrong results"
    except RuntimeError as refused:
        error = str(refused).splitlines()[0]
    return {"name": torch.cuda.get_device_name(number), "error": error}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts()))
