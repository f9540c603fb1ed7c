"""A job that computes in several processes: the first, which is the job's own, starts the others, watches them and
reports for all. A kind that can be shared has `assist(params, ranks)`, which is what the others do."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jobs import processes
from jobs.errors import InvalidInput, JobError, classify

if TYPE_CHECKING:
    from jobs.ml.parallel import Ranks

HERE = "127.0.0.1"
LAST_WORDS = 5.0  # seconds in which one that ends says why
PATIENCE = 60.0  # seconds in which the first must have noticed that another one ended
HINT = "Try again: it goes on from the last checkpoint. Look at the memory of the machine, too."
Process = subprocess.Popen[bytes]


@contextlib.contextmanager
def company(kind: str, params: dict[str, Any], n: int) -> "Iterator[Ranks]":
    """n processes of this machine, for the part of a job that they share: what one does alone afterwards needs nobody.
    The others are of this one's process group, and end with it, however it ends. Raises JobError or InvalidInput, with
    what is known of it, where one of them ended before its time."""
    from torch.distributed import TCPStore

    from jobs.ml import parallel

    if n == 1:
        yield parallel.ALONE
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store, kills = TCPStore(HERE, 0, n, is_master=True, wait_for_workers=False), processes.oom_kills()
    others: list[Process] = []
    over = threading.Event()
    try:
        for rank in range(1, n):
            others.append(start({"kind": kind, "params": params, "rank": rank, "size": n, "port": store.port}))
        threading.Thread(target=watch, args=(others, over), name="watch of the others", daemon=True).start()
        wait_for(store, others)
        yield parallel.meet(parallel.Ranks(0, n), 0, n, store)
    except parallel.ProcessLost as lost:
        why = ending(others, processes.oom_kills() > kills)
        raise (why or lost) from lost
    finally:
        over.set()
        for other in others:
            other.kill()
            other.wait()
        parallel.leave()


def start(told: dict[str, Any]) -> Process:
    """It reads what it is to do from its standard input, and says on its standard output why it failed."""
    parent = os.getpid()
    other = subprocess.Popen(
        [sys.executable, "-m", "jobs.ranks"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: processes.die_with_parent(signal.SIGKILL, parent),
    )
    assert other.stdin
    with contextlib.suppress(BrokenPipeError), other.stdin as pipe:
        pipe.write(json.dumps(told).encode())
    return other


def wait_for(store: Any, others: list[Process]) -> None:
    """Until all are there. Raises ProcessLost."""
    from jobs.ml.parallel import ProcessLost

    while not store.check([f"here/{rank}" for rank in range(1, len(others) + 1)]):
        if any(other.poll() is not None for other in others):
            raise ProcessLost("Another process of this run ended before it began.", HINT)
        time.sleep(0.05)


def watch(others: list[Process], over: threading.Event) -> None:
    """Not every way to wait for another process ends when that one does: this one shall not wait forever."""
    while not over.wait(0.5):
        if any(other.poll() for other in others) and not over.wait(PATIENCE):
            os.write(2, b"Another process of this job ended, and this one cannot go on without it.\n")
            os._exit(1)


def ending(others: list[Process], out_of_memory: bool) -> JobError | InvalidInput | None:
    """How the first one ended of those that did not end well."""
    deadline = time.monotonic() + LAST_WORDS
    while time.monotonic() < deadline:
        for rank, other in enumerate(others, 1):
            if code := other.poll():
                return told_by(other, code, f"Process {rank + 1} of {len(others) + 1}", out_of_memory)
        time.sleep(0.05)
    return None


def told_by(other: Process, code: int, name: str, out_of_memory: bool) -> JobError | InvalidInput:
    said = other.stdout.read() if other.stdout else b""
    with contextlib.suppress(ValueError):
        failure = json.loads(said)
        message = f"{name} failed: {failure['message']}"
        if failure["field"]:
            return InvalidInput(message, failure["hint"], failure["field"])
        return JobError(failure["code"], message, failure["hint"])
    if code == -signal.SIGKILL and out_of_memory:
        return JobError("OUT_OF_MEMORY", f"The kernel killed {name.lower()} because memory ran out.")
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return JobError("WORKER_LOST", f"{name} {how}, and the others cannot go on without it.", HINT)


def main() -> int:
    """What the others are."""
    from torch.distributed import TCPStore

    from jobs.kinds import load_kind, make_params
    from jobs.ml import parallel

    told, said, sys.stdout = json.load(sys.stdin), sys.stdout, sys.stderr
    rank, size = told["rank"], told["size"]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        kind = load_kind(told["kind"])
        params = make_params(kind, told["params"])
        store = TCPStore(HERE, told["port"], size, is_master=False)
        store.set(f"here/{rank}", "")
        kind.assist(params, parallel.meet(parallel.Ranks(rank, size), rank, size, store))
    except parallel.ProcessLost:
        return 0  # another one has to say why
    except BaseException as error:
        traceback.print_exc()
        json.dump({**asdict(classify(error)), "field": getattr(error, "field", "")}, said)
        said.flush()
        time.sleep(1)  # those that fail for the same reason are not to meet a closed connection first
        return 1
    finally:
        parallel.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
