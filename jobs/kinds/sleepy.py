"""A job that behaves as it is told: for trying out the runner, and for its tests."""

import ctypes
import json
import os
import resource
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.context import Context
from jobs.errors import InvalidInput, JobError

LABEL = "Sleep"
QUEUE = "cpu"
RESUMABLE = True
FINISH_EARLY = True
STAGES = {"prepare": 1.0, "sleep": 9.0}
ON_SUCCESS = "jobs.kinds.sleepy.remember"

THEN = ("", "raise", "hang", "deaf", "signal", "exit", "memory", "crowd")


@dataclass(frozen=True)
class Params:
    """`steps` steps of `seconds` each. At step `at` it does `then`, in its first `times` attempts."""

    steps: int = 10
    seconds: float = 0.01
    folder: str = ""  # where it keeps a checkpoint after each step; empty: it starts over
    then: str = ""
    at: int = 0
    times: int = 1_000_000
    error: str = "UNKNOWN"  # for "raise": an error code, or the words of an exception it does not know
    number: int = 9  # for "signal": which; for "exit": the exit code
    batch: int = 8
    fits: int = 1_000_000  # a larger batch runs out of memory
    lines: int = 0  # printed at each step

    def __post_init__(self) -> None:
        if self.then not in THEN:
            raise InvalidInput(f"then: {self.then!r} is none of {', '.join(filter(None, THEN))}.", field="then")
        if not 0 < self.steps <= 10_000_000:
            raise InvalidInput(f"steps: {self.steps} is not from 1 to 10,000,000.", field="steps")


def smaller(params: Params) -> Params | None:
    return replace(params, batch=params.batch // 2) if params.batch > 1 else None


def run(params: Params, ctx: Context) -> dict[str, Any]:
    ctx.stage("prepare")
    step, total = load(params)
    ctx.stage("sleep", total=params.steps, unit="steps")
    ctx.at(step)
    while step < params.steps and ctx.wish() != "finish":
        ctx.check()
        if step == params.at and ctx.attempt <= params.times:
            misbehave(params)
        time.sleep(params.seconds)
        step, total = step + 1, total + step
        save(params, step, total)
        ctx.metric(step, total=total)
        ctx.advance()
        for line in range(params.lines):
            ctx.log(f"step {step}, line {line}: {'z' * 100}")
    return {"steps": step, "total": total}


def load(params: Params) -> tuple[int, int]:
    path = Path(params.folder) / "checkpoint.json"
    if not params.folder or not path.exists():
        return 0, 0
    state = json.loads(path.read_text())
    return state["step"], state["total"]


def save(params: Params, step: int, total: int) -> None:
    if not params.folder:
        return
    folder = Path(params.folder)
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / "checkpoint.tmp"
    draft.write_text(json.dumps({"step": step, "total": total}))
    draft.replace(folder / "checkpoint.json")


def remember(job: Any, result: dict[str, Any]) -> None:
    if folder := job.params["folder"]:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "ingested.json").write_text(json.dumps({"job": job.pk, **result}))


def misbehave(params: Params) -> None:
    if params.batch > params.fits:
        raise MemoryError(f"a batch of {params.batch} does not fit")
    if params.then == "raise":
        raise_error(params.error)
    elif params.then in ("hang", "deaf"):
        hang(deaf=params.then == "deaf")
    elif params.then == "signal":
        signal.signal(params.number, signal.SIG_DFL) if params.number not in (9, 19) else None
        os.kill(os.getpid(), params.number)
    elif params.then == "exit":
        os._exit(params.number)
    elif params.then == "memory":
        eat()
    elif params.then == "crowd":
        crowd()


def raise_error(error: str) -> None:
    try:
        known = JobError(error, f"Told to fail with {error}.")
    except ValueError:
        raise RuntimeError(error) from None
    raise known


def hang(deaf: bool) -> None:
    if deaf:
        # A call into C that never comes back: no handler of Python runs, like a hung driver.
        ctypes.PyDLL(None).sleep(3600)
    while True:
        time.sleep(3600)


def crowd() -> None:
    """Start a process that outlives this one if nobody cleans up, then hang."""
    if os.fork() == 0:
        time.sleep(3600)
        os._exit(0)
    hang(deaf=False)


def eat() -> None:
    """Memory up to a limit of our own: Python gets the MemoryError that a full machine would give."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20, resource.RLIM_INFINITY))
    hoard = []
    while True:
        hoard.append(bytearray(16 * 2**20))
