"""Which process is which after a crash, and who dies with whom. Linux."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from django.conf import settings

PROC = Path("/proc")
PR_SET_PDEATHSIG = 1
# Held back until the child has its handlers: Python's defaults would end it without a word.
HELD = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}

libc = ctypes.CDLL(None, use_errno=True)


def this_host() -> str:
    """Pids of two containers or of two boots do not compare, even if the hostname is the same."""
    boot = (PROC / "sys/kernel/random/boot_id").read_text()[:8]
    return f"{socket.gethostname()}/{(PROC / 'self/ns/pid').readlink().name.strip('pid:[]')}/{boot}"


def stat_of(pid: int) -> list[bytes]:
    """The fields of its stat that follow its name, from the state on; none when it is gone."""
    try:
        # The name of a process may hold spaces and brackets: the fields follow its last bracket.
        return (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def has_ended(stat: list[bytes]) -> bool:
    """Gone, or a zombie."""
    return not stat or stat[0] in (b"Z", b"X")


def start_of(pid: int) -> int | None:
    """When the process began, in ticks since boot; None for a process that is gone or a zombie."""
    stat = stat_of(pid)
    return None if has_ended(stat) else int(stat[19])


def alive(pid: int | None, start: int | None) -> bool:
    """Is it still that process, and not another one that got its number?"""
    return pid is not None and start is not None and start_of(pid) == start


def command_line(pid: int) -> list[str]:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def memory_of(pid: int) -> int:
    """Resident bytes, 0 when it is gone."""
    try:
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def oom_kills() -> int:
    """How many processes the kernel has killed for memory since boot."""
    with contextlib.suppress(OSError, ValueError):
        for line in (PROC / "vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def kill_group(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def ended(pid: int) -> bool:
    """Has this child of ours ended? It stays a zombie, so that its number cannot go to a stranger meanwhile."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found is not None and found.si_pid == pid


def die_with_parent(number: int, parent: int) -> None:
    libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it died before it could be tied
        os._exit(1)


def tie_forks() -> None:
    """From now on every fork of this process, and their forks, are killed when their parent dies, however it dies."""
    parent: list[int] = [os.getpid()]

    def remember() -> None:
        parent[0] = os.getpid()

    os.register_at_fork(before=remember, after_in_child=lambda: die_with_parent(signal.SIGKILL, parent[0]))


def manage(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "django", *arguments]


def manage_environment() -> dict[str, str]:
    """Whoever starts it and wherever, the child finds the same project and the same settings."""
    paths = [str(settings.ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": os.environ.get("DJANGO_SETTINGS_MODULE") or settings.SETTINGS_MODULE,
        "MISTUDIO_DATA": str(settings.MISTUDIO_DATA),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
    }


def spawn(
    argv: list[str],
    *,
    output: IO[Any] | int | None = None,
    number: int = signal.SIGTERM,
    hold: bool = False,
    env: dict[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a process in a session of its own that gets `number` when this one dies.

    `hold`: it must unblock the signals of HELD itself, once it can handle them."""
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        start_new_session=True,
        env={**manage_environment(), **(env or {})},
        preexec_fn=tied(number, hold),
    )


def tied(number: int, hold: bool) -> Callable[[], None]:
    parent = os.getpid()

    def before_exec() -> None:
        if hold:
            signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        die_with_parent(number, parent)

    return before_exec
