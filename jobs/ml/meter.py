"""What a language model costs on this machine: seconds to load it, bytes, tokens per second. Measured, or None."""

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from jobs.ml.language_model import LOADED

STATUS, CLEAR, PROCESSORS = (Path("/proc") / name for name in ("self/status", "self/clear_refs", "cpuinfo"))


class Stretch:
    """From the first position to the last: what was there before this process began counts for no speed."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None
        self.tokens, self.seconds = 0, 0.0

    def at(self, tokens: int) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = now, tokens
        self.tokens, self.seconds = tokens - self.first[1], now - self.first[0]


class Meter:
    """Begun before the model is loaded: the peak is of all that comes after, but for trials of it."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        forget_peak()
        self.before = psutil.Process().memory_info().rss

    def run(self, rows: int, context_length: int, tokens: int, seconds: float, **more: Any) -> None:
        """rows: sequences in a forward pass. Nothing is kept of a stretch too short to have a speed."""
        if tokens > 0 and seconds > 0:
            speed = {"tokens": tokens, "tokens_per_second": tokens / seconds}
            self.runs[str(rows)] = {"context_length": context_length, **speed, **more}

    def report(self, model: PreTrainedModel) -> dict[str, Any]:
        loaded = LOADED[model]
        return {
            "device": device_name(),
            "dtype": loaded.dtype,
            "load_seconds": loaded.seconds,
            "weight_bytes": loaded.weight_bytes,
            "peak_bytes": self.peak_bytes(),
            "runs": self.runs,
        }

    def peak_bytes(self) -> int | None:
        """Of GPU memory, without a GPU of the process's own memory, over what was there before."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
        grown = int(found[1]) * 1024 - self.before if found else 0
        return grown if grown > 0 else None


def forget_peak() -> None:
    """The peak counts from here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            CLEAR.write_text("5")


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    found = re.search(r"model name\s*:\s*(.+)", PROCESSORS.read_text()) if PROCESSORS.exists() else None
    threads = torch.get_num_threads()
    return f"{found[1].strip() if found else 'CPU'}, {threads} thread{'s' if threads > 1 else ''}"


def memory_now(device: str) -> int:
    """Bytes that this process holds: on a GPU in tensors there, else in all."""
    return torch.cuda.memory_allocated() if device == "cuda" else psutil.Process().memory_info().rss
