"""`manage.py studio`: the site in this process, the workers as its children. Whatever ends it ends them all."""

import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.db import connection

from jobs import processes
from jobs.queue import QUEUES
from jobs.schema import unapplied
from jobs.supervise import wait_for

TEND = 0.5  # seconds between looks at the workers
STEADY = 60.0  # a worker that ran for so long and died is started again at once
PORTS = 50  # to try after the preferred one
BACKLOG = 1024  # connections that wait to be accepted: after a restart all pages come back at once


log = logging.getLogger(__name__)


class CannotStart(Exception):
    """Says what to do about it."""


def require_migrations() -> None:
    if unapplied():
        raise CannotStart("The database is not prepared for this version. Run: mistudio migrate")


def lock_path(folder: Path) -> Path:
    """Of this host: several may share the folder."""
    return folder / f"studio-{socket.gethostname()}.lock"


def lock_data(folder: Path) -> IO[str]:
    """Holds the data folder as long as the file is open. The kernel lets go of it however this process ends."""
    file = lock_path(folder).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        said = running_studio(folder)
        file.close()
        where = f" at {said['url']}, process {said['pid']}" if said else ""
        raise CannotStart(
            f"miStudio already runs on {folder}{where}. Use that one, stop it, or set MISTUDIO_DATA to another folder."
        ) from None
    return file


def sign_lock(file: IO[str], url: str) -> None:
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "url": url}))
    file.flush()


def running_studio(folder: Path) -> dict[str, Any]:
    """What the studio that holds the folder wrote; empty while it starts."""
    try:
        return json.loads(lock_path(folder).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def listen(host: str, port: int | None) -> socket.socket:
    """On the given port or, when none is given, on the preferred one or the next that is free. Raises CannotStart."""
    first = port or settings.MISTUDIO_PORT
    tries = [first] if port else range(first, min(first + PORTS, 65536))
    for number in tries:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
            listener.listen(BACKLOG)
            return listener
        except OSError as error:
            listener.close()
            if not isinstance(error, PermissionError) and error.errno != 98:  # EADDRINUSE
                raise CannotStart(f"Cannot listen on {host}:{number}: {error.strerror or error}.") from error
    wanted = f"Port {first} is" if port else f"Ports {first} to {first + PORTS - 1} are"
    raise CannotStart(f"{wanted} in use or not allowed. Give another one: mistudio studio --port {first + PORTS}")


class KeptWorker:
    """A worker process that is started again when it dies, ever more slowly if it dies at once."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.process: subprocess.Popen[bytes] | None = None
        self.started = self.start_at = 0.0
        self.failures = 0

    def tend(self) -> None:
        now = time.monotonic()
        if self.process and self.process.poll() is not None:
            self.process = None
            self.failures = 0 if now - self.started > STEADY else self.failures + 1
            self.start_at = now + (min(30, 2**self.failures) if self.failures > 1 else 0)
        if self.process is None and now >= self.start_at:
            self.started = now
            argv = processes.manage("worker", "--queue", self.queue, "--skip-checks")  # done by this process
            try:
                self.process = processes.spawn(argv, env={"Q_CLUSTER_NAME": self.queue})
            except OSError as error:  # no memory or no processes left for now
                self.failures += 1
                self.start_at = now + min(30, 2**self.failures)
                log.warning("The worker of queue %s does not start: %s", self.queue, error)

    def tell(self, number: int) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)

    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None


class Studio:
    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int | None = None,
        worker: bool = True,
        on_ready: Callable[[str], None] | None = None,
    ) -> None:
        self.host, self.port, self.on_ready = host, port, on_ready
        self.workers = [KeptWorker(queue) for queue in QUEUES] if worker else []

    def run(self) -> None:
        """Until SIGINT or SIGTERM. Raises CannotStart."""
        require_migrations()
        with lock_data(settings.MISTUDIO_DATA) as lock, listen(self.host, self.port) as listener:
            shown = "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104
            url = f"http://{shown}:{listener.getsockname()[1]}/"
            sign_lock(lock, url)
            try:
                self.serve(listener, url)
            finally:
                self.stop()

    def serve(self, listener: socket.socket, url: str) -> None:
        from jobs.server import Server  # isort: skip  # first: it chooses the reactor

        from twisted.internet import reactor, task

        server = Server(listener)
        task.LoopingCall(self.tend).start(TEND)
        loop: Any = reactor
        # In a thread: what it does may ask the database, which the event loop's thread must not.
        loop.callWhenRunning(loop.callInThread, self.say_ready, url)
        loop.addSystemEventTrigger("before", "shutdown", self.tell, signal.SIGTERM)
        server.run()

    def say_ready(self, url: str) -> None:
        try:
            if self.on_ready:
                self.on_ready(url)
        except Exception:
            log.exception("The site runs at %s, but its address could not be announced", url)
        finally:
            connection.close()

    def tend(self) -> None:
        for worker in self.workers:
            worker.tend()

    def tell(self, number: int) -> None:
        for worker in self.workers:
            worker.tell(number)

    def stop(self) -> None:
        """Workers get their grace, in which jobs save their checkpoints; a second Ctrl-C does not wait for it."""
        self.tell(signal.SIGTERM)
        with contextlib.suppress(KeyboardInterrupt):
            wait_for(lambda: all(w.ended() for w in self.workers), settings.STOP_GRACE_SECONDS + 8)
        self.tell(signal.SIGKILL)
        wait_for(lambda: all(w.ended() for w in self.workers), 2)


@contextlib.contextmanager
def studio(*arguments: str, patience: float = 60) -> Iterator[str]:
    """A studio as a child of this process, for as long as the block lasts: yields its address once it answers.

    Raises CannotStart when it ends before that; it has said why."""
    process = processes.spawn(processes.manage("studio", *arguments))
    try:
        if not wait_for(lambda: process.poll() is not None or address_of(process.pid), patience):
            raise CannotStart(f"miStudio did not answer within {patience:.0f} s.")
        if process.poll() is not None:
            raise CannotStart("miStudio did not start.")
        yield address_of(process.pid)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(settings.STOP_GRACE_SECONDS + 15)
        process.kill()
        process.wait()


def address_of(pid: int) -> str:
    """Of the studio with this process, once it answers; else empty."""
    said = running_studio(settings.MISTUDIO_DATA)
    return said["url"] if said.get("pid") == pid and answers(said["url"]) else ""


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
