"""How a language model is run fastest on this machine: in which precision, and how many sequences at once.

Tried for a second or two where a model is first read on a device to a depth, and kept beside it in calibration.json,
where later runs find it.
"""

import fcntl
import json
import math
import os
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from jobs.ml import store
from jobs.ml.config import AUTO
from jobs.ml.language_model import load_model
from jobs.ml.meter import device_name, forget_peak
from jobs.ml.site_names import EMBED
from jobs.ml.sites import Site, capture, resolve

FILE = "calibration.json"
ROWS = (1, 2, 4, 8, 16, 32, 64)
FEWEST_TOKENS = 512  # in a pass: with fewer, what is done once per pass weighs more than a trial can show
SECONDS = 1.5  # for all row counts of one precision, unless single passes take longer
TURNS = 10  # passes of each, at most: of a small model they take far less than that
CLOSE = 0.97  # of the best rate: of the row counts this close to it the smallest is chosen, it needs the least memory
FASTER = 1.2  # times the rate of float32 a CPU must reach in bfloat16 that `auto` means it


@dataclass(frozen=True)
class Setting:
    """What a measurement holds for."""

    device: str
    dtype: str
    threads: int
    context_length: int
    depth: str  # the block in which a pass ends


def load_calibrated(
    folder: Path | str, *, site: str, context_length: int, device: str, dtype: str, rows: int | None = None
) -> tuple[PreTrainedModel, str, int]:
    """The model, the precision it is in, and the sequences per forward pass; what is left open, dtype `auto` and
    rows None, is decided by measurement. Raises what load_model and resolve raise.
    """
    choices = precisions(device) if dtype == AUTO else [dtype]
    if rows is not None and len(choices) == 1:
        return load_model(folder, device, choices[0]), choices[0], rows
    found: dict[str, dict[str, Any]] = {}
    model, loaded = None, ""
    for choice in choices:
        setting = Setting(device_name(), choice, torch.get_num_threads(), context_length, depth_of(site))
        entry = find(Path(folder), setting)
        if entry is None:
            model = None  # one at a time is held
            model, loaded = load_model(folder, device, choice), choice
            entry = keep(Path(folder), setting, measure(model, resolve(model, site), context_length))
        found[choice] = entry
    chosen = fastest(found)
    if model is None or loaded != chosen:
        model = None
        model = load_model(folder, device, chosen)
    return model, chosen, rows or found[chosen]["rows"]


def precisions(device: str) -> list[str]:
    """What `auto` may mean: bfloat16 on a GPU that computes in it; where a CPU has instructions for it, either."""
    if device == "cuda":
        return ["bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"]
    return ["float32", "bfloat16"] if torch.cpu._is_avx512_bf16_supported() else ["float32"]


def fastest(found: dict[str, dict[str, Any]]) -> str:
    """float32, unless another one is clearly faster."""
    rates = {dtype: max(entry["tokens_per_second"].values()) for dtype, entry in found.items()}
    best = max(rates, key=lambda dtype: rates[dtype])
    return "float32" if rates[best] < FASTER * rates.get("float32", 0) else best


def measure(model: PreTrainedModel, site: Site, context_length: int) -> dict[str, Any]:
    """Tokens per second of forward passes that end at the site, by the number of sequences in them."""
    began, spare, before = time.monotonic(), free_bytes(model.device) // 4, peak_bytes(model.device)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (ROWS[-1], context_length), generator=torch.Generator().manual_seed(0))
    ids = ids.to(model.device)
    sizes: list[int] = []
    for rows in [rows for rows in ROWS if rows * context_length >= FEWEST_TOKENS] or ROWS[-1:]:
        try:
            seconds(model, site, ids[:rows])  # the first pass warms up, and shows what time and memory allow
        except (MemoryError, RuntimeError):  # torch has no class of its own for memory of the CPU
            if not sizes:
                raise
            break
        sizes.append(rows)
        if time.monotonic() - began > SECONDS / 2 or peak_bytes(model.device) - before > spare:
            break
    times: dict[int, list[float]] = {rows: [] for rows in sizes}
    for turn in range(TURNS):
        if turn and time.monotonic() - began > SECONDS:
            break
        for rows in sizes:  # in turns: a moment in which the machine is busy hits all of them
            times[rows].append(seconds(model, site, ids[:rows]))
    forget_peak()  # what a trial takes is not what the work takes
    # The median: large passes are fast now and then, when their memory happens to be at hand.
    rates = {rows: round(rows * context_length / statistics.median(times[rows]), 1) for rows in sizes}
    return {
        "rows": next(rows for rows in sizes if rates[rows] >= CLOSE * max(rates.values())),
        "tokens_per_second": {str(rows): value for rows, value in rates.items()},
    }


def seconds(model: PreTrainedModel, site: Site, ids: torch.Tensor) -> float:
    """What a forward pass takes."""
    started = time.perf_counter()
    capture(model, site, ids)
    if ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def depth_of(site: str) -> str:
    """The number of the block in the site's name; for what lies outside of the blocks, the name."""
    return next((part for part in site.split(".") if part.isdecimal()), site)


def deepest(sites: Sequence[str]) -> str:
    """The one of several sites, read in one pass, in whose block it ends."""

    def depth(site: str) -> float:
        number = depth_of(site)
        return int(number) if number.isdecimal() else -1 if site == EMBED else math.inf

    return max(sites, key=depth)


def free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available


def peak_bytes(device: torch.device) -> int:
    """On a GPU of what torch has allocated there, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def find(folder: Path, setting: Setting) -> dict[str, Any] | None:
    return next((entry for entry in read(folder) if entry["setting"] == asdict(setting)), None)


def read(folder: Path) -> list[dict[str, Any]]:
    """What was measured of the model in the folder; nothing where the file is not as it was written."""
    try:
        entries = store.read_json(folder / FILE)
        return [entry for entry in entries if entry["setting"] and entry["rows"] and entry["tokens_per_second"]]
    except (OSError, json.JSONDecodeError, TypeError, KeyError):
        return []


def keep(folder: Path, setting: Setting, figures: dict[str, Any]) -> dict[str, Any]:
    """Adds an entry and returns it; that of another job, where it was quicker, so that both read alike."""
    with alone(folder):
        if entry := find(folder, setting):
            return entry
        entry = {"setting": asdict(setting), **figures}
        store.write_json(folder / FILE, [*read(folder), entry])
        return entry


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
