"""Kills processes of a studio without warning, at moments that a seed chooses, and looks what is left of them."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from jobs.processes import tied
from tests.conftest import ROOT, free_port

VICTIMS = ("child", "supervisor", "sentinel", "worker", "studio")


class Killing:
    """A studio on the data folder of the environment, and somebody who is after its processes."""

    def __init__(self, folder: Path, seed: int, env: dict[str, str] | None = None) -> None:
        self.random = random.Random(seed)
        self.log = folder / f"studio-{seed}.log"
        self.env = {**os.environ, **(env or {}), "MISTUDIO_TEST_MARK": f"{folder}-{seed}"}
        self.port = free_port()
        self.studio: subprocess.Popen[bytes] | None = None
        self.struck: list[str] = []

    def start(self) -> None:
        with self.log.open("a") as out:
            command = [sys.executable, "manage.py", "studio", "--port", str(self.port)]
            self.studio = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.env,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=tied(signal.SIGKILL, hold=False),
            )

    def stop(self) -> int:
        assert self.studio is not None  # it was started
        self.studio.send_signal(signal.SIGTERM)
        return self.studio.wait(60)

    def everybody(self) -> list[psutil.Process]:
        """All processes of this studio, whoever their parents are by now: each inherited its mark."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("MISTUDIO_TEST_MARK") == self.env["MISTUDIO_TEST_MARK"]
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def candidates(self, what: str) -> list[psutil.Process]:
        lines = {process: words(process) for process in self.everybody()}
        children = [process for process, line in lines.items() if "run_job" in line]
        workers = [process for process, line in lines.items() if "worker" in line and parent_is(process, "studio")]
        by_role = {
            "child": children,
            "supervisor": [p for p in map(parent, children) if p is not None and "worker" in words(p)],
            "sentinel": [child for worker in workers for child in offspring(worker)],
            "worker": workers,
            "studio": [process for process, line in lines.items() if "studio" in line],
        }
        return by_role[what]

    def strike(self, victims: tuple[str, ...] = VICTIMS) -> str:
        """Kill one of them; a studio is started again. What was killed, or nothing when there was nobody."""
        what = self.random.choice(victims)
        chosen = self.candidates(what)
        if not chosen:
            return ""
        target = self.random.choice(chosen)
        try:
            target.kill()
        except psutil.NoSuchProcess:
            return ""
        self.struck.append(what)
        if what == "studio":
            assert self.studio is not None  # it was just killed
            self.studio.wait(10)
            self.start()
        return what

    def until(
        self, done: Callable[[], bool], strikes: int, pause: tuple[float, float] = (0.5, 4.0), seconds: float = 240
    ) -> None:
        """Strike again and again, then leave them in peace until they are done."""
        deadline = time.monotonic() + seconds
        next_strike = time.monotonic() + self.random.uniform(*pause)
        while not done():
            assert time.monotonic() < deadline, f"not done in time after {self.struck}\n{self.log.read_text()[-3000:]}"
            if len(self.struck) < strikes and time.monotonic() >= next_strike:
                self.strike()
                next_strike = time.monotonic() + self.random.uniform(*pause)
            time.sleep(0.05)

    def left_over(self, seconds: float = 10) -> list[list[str]]:
        """The command lines of what still lives that long after the end."""
        deadline = time.monotonic() + seconds
        while (found := self.everybody()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [words(process) for process in found]


def words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def parent(process: psutil.Process) -> psutil.Process | None:
    try:
        return process.parent()
    except psutil.Error:
        return None


def offspring(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.Error:
        return []


def parent_is(process: psutil.Process, command: str) -> bool:
    above = parent(process)
    return above is not None and command in words(above)
