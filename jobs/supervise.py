"""Supervises one attempt of a job: claim it, start its process, hear wishes, and write how it ended.

Runs in a django-q2 worker (`work`) or in a command (`run_here`). It never imports what the job needs."""

import contextlib
import logging
import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import DatabaseError, connections, transaction
from django.utils import timezone

from jobs import processes
from jobs.devices import devices, devices_of_its_own
from jobs.endings import failed, judge, settle
from jobs.errors import classify
from jobs.gpus import Gpus
from jobs.live import publish
from jobs.log_format import speaking_of
from jobs.logs import log_path, open_log, trim
from jobs.ml import allocator
from jobs.models import Job, QueuePause, State
from jobs.order import in_order
from jobs.outcome import outcome_path, read_outcome
from jobs.secrets import known, secrets_of, strike_out
from jobs.usage import Meter, at_rest

if TYPE_CHECKING:
    import subprocess

    from django.db.models import QuerySet

TICK, LOOK, HEARTBEAT = 0.1, 0.5, 5.0  # seconds
STALE = 120.0  # without a heartbeat for so long, a job has lost its worker
SIGNALS = {
    "cancel": signal.SIGINT,
    "pause": signal.SIGUSR1,
    "finish": signal.SIGUSR2,
    "stop": signal.SIGTERM,
}

log = logging.getLogger(__name__)


class Flag:
    """Shared with every process forked later, without a lock that a killed one could leave locked."""

    def __init__(self) -> None:
        self.byte = mmap.mmap(-1, 1)

    def set(self, value: bool = True) -> None:
        self.byte[0] = int(value)

    def __bool__(self) -> bool:
        return bool(self.byte[0])


STOPPING = Flag()  # set by `manage.py worker` when it shuts down


def work(queue: str) -> None:
    """The django-q2 task: the job whose turn it is. A message that comes twice or late finds none, and does nothing."""
    if STOPPING:
        return
    if job := claim_next(queue):
        with heard(signal.SIGTERM) as words:
            Supervision(job, lambda: "stop" if STOPPING or words else "").run()


def run_here(job: Job, on_look: Callable[[Job], None] | None = None) -> Job:
    """Run it in this process's child, for a command while no worker is alive. Ctrl-C pauses it if it can go on later,
    else cancels it. Another process may have been faster: then nothing happens here."""
    claimed = claim(job.pk)
    if claimed is None:
        job.refresh_from_db()
        return job
    interrupted = "pause" if job.ability("RESUMABLE") else "cancel"
    with heard(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as words:
        Supervision(claimed, lambda: interrupted if words else "", on_look).run()
    claimed.refresh_from_db()
    return claimed


@contextlib.contextmanager
def heard(*numbers: int) -> Iterator[list[int]]:
    """The signals that came; meanwhile they end nothing."""
    words: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        words.append(number)

    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield words
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def claim_next(queue: str) -> Job | None:
    """None when nothing waits, or the queue is paused. When somebody else was faster the order is asked anew: it is
    another one by now."""
    while first := next(in_order(queue), None):
        with transaction.atomic():  # a queue that is paused in this moment starts nothing
            if QueuePause.objects.filter(queue=queue).exists():
                return None
            if job := claim(first.pk):
                return job
    return None


def claim(job_id: int) -> Job | None:
    """Of all who want to run it, one gets it: the move is one conditional UPDATE."""
    job = Job.objects.filter(pk=job_id, state=State.QUEUED).first()
    if job is None:
        return None
    me = os.getpid()
    taken = job.move(
        State.RUNNING,
        f"attempt {job.attempt + 1} started",
        {"host": processes.this_host().split("/")[0], "pid": me},
        attempt=job.attempt + 1,
        host=processes.this_host(),
        supervisor_pid=me,
        supervisor_start=processes.start_of(me),
        pid=None,
        pid_start=None,
        devices=[],
        heartbeat_at=timezone.now(),
        percent_at_start=job.percent,
        usage=at_rest(job.usage),
        progress_at=None,
        exit_code=None,
    )
    return job if taken else None


class Supervision:
    """One attempt. `asked` says what its surroundings want: "" or "stop", or "pause" or "cancel" for a command."""

    def __init__(self, job: Job, asked: Callable[[], str], on_look: Callable[[Job], None] | None = None) -> None:
        self.job, self.asked, self.on_look = job, asked, on_look
        self.told, self.kill_at = "", float("inf")
        self.finishing = self.lost = False
        self.secrets = secrets_of(job)
        self.meter = Meter(job.usage)
        self.memory = 0  # largest resident size seen, bytes
        # At the last two looks: the kernel counts for the whole machine, so only its newest kill can be ours.
        self.oom_kills = (processes.oom_kills(),) * 2
        self.heartbeat = self.looked = time.monotonic()

    def run(self) -> None:
        n_devices = self.job.params.get("processes", 1)
        with speaking_of(self.job), devices_of_its_own(self.job.queue, n_devices) as env:
            given = env["CUDA_VISIBLE_DEVICES"].split(",") if env else []
            try:
                child = self.start(env, given)
            except OSError as error:  # a full disk, or no processes left
                settle(self.job, failed(self.job, asdict(classify(error)), {}))
                return
            try:
                with contextlib.closing(Gpus(given or devices())) as self.meter.gpus:
                    self.watch(child)
                    self.measure(child.pid, last=True)  # it has ended, and is still there to be read
            finally:
                processes.kill_group(child.pid)  # what it leaves behind, or itself if we fail
                child.wait()
        self.tidy_log()
        if not self.lost:
            self.finish(child.returncode, processes.oom_kills() > self.oom_kills[0])

    def start(self, env: dict[str, str], given: list[str]) -> "subprocess.Popen[bytes]":
        with contextlib.suppress(DatabaseError):  # only pages show it
            self.mine().update(devices=given)
        outcome_path(self.job).unlink(missing_ok=True)
        output = open_log(self.job)
        try:
            argv = processes.manage("run_job", str(self.job.pk), str(self.job.attempt))
            env = {**allocator.environment(), **env, **self.secrets}
            return processes.spawn(argv, output=output, hold=True, env=env)
        finally:
            os.close(output)

    def watch(self, child: "subprocess.Popen[bytes]") -> None:
        while not processes.ended(child.pid):
            now = time.monotonic()
            if now - self.looked >= LOOK:
                self.looked = now
                self.look(child.pid)
            if word := self.asked():
                self.tell(child.pid, word)
            if now >= self.kill_at:
                processes.kill_group(child.pid)
            time.sleep(TICK)

    def look(self, pid: int) -> None:
        """Heartbeat and wishes. A database that does not answer does not disturb the work, unless it lasts."""
        self.memory = max(self.memory, processes.memory_of(pid))
        self.measure(pid)
        self.oom_kills = self.oom_kills[1], processes.oom_kills()
        self.tidy_log()
        try:
            self.look_at_row(pid)
        except DatabaseError as error:
            log.warning("Job %s: the database does not answer: %s", self.job.pk, error)
            connections.close_all()
            # Others will soon take the job for lost: it must have ended here before it starts there.
            if time.monotonic() - self.heartbeat > STALE - settings.STOP_GRACE_SECONDS - 10:
                self.tell(pid, "stop")

    def measure(self, pid: int, last: bool = False) -> None:
        with contextlib.suppress(OSError, ValueError):  # a /proc that is not as we know it: then nothing is measured
            self.meter.look(pid, last)

    def tidy_log(self) -> None:
        """Bounded, and without a secret that a library may have printed."""
        with contextlib.suppress(OSError):
            strike_out(log_path(self.job), known(self.secrets))
        trim(log_path(self.job))

    def look_at_row(self, pid: int) -> None:
        if self.looked - self.heartbeat >= HEARTBEAT:
            if self.mine().update(heartbeat_at=timezone.now(), usage=self.meter.kept()):
                publish(f"jobs.{self.job.pk}")
            self.heartbeat = self.looked
        fresh = self.mine().first()
        if fresh is None:
            self.lost, self.kill_at = True, 0
            return
        self.job = fresh
        if fresh.wish:
            self.tell(pid, fresh.wish)
        if self.on_look:
            self.on_look(fresh)

    def mine(self) -> "QuerySet[Job]":
        """The row, while it is this attempt's: none once others have taken the job."""
        return Job.objects.filter(pk=self.job.pk, state=State.RUNNING, attempt=self.job.attempt)

    def tell(self, pid: int, word: str) -> None:
        """Say it once. Every word but "finish" must be obeyed within the grace."""
        if word == "finish":
            if not self.finishing:
                self.finishing = True
                processes.send(pid, SIGNALS[word])
            return
        if word == self.told or self.told == "cancel":
            return
        self.told = word
        self.kill_at = time.monotonic() + settings.STOP_GRACE_SECONDS
        processes.send(pid, SIGNALS[word])

    def finish(self, exit_code: int, oom_killed: bool) -> None:
        """The ending must reach the row: nobody else knows it. If we die here too, the reaper reads the outcome."""
        oom = out_of_memory_words(self.memory) if oom_killed else ""
        deadline = time.monotonic() + 600
        while True:
            try:
                if fresh := self.mine().first():
                    ending = judge(fresh, read_outcome(fresh), told=self.told, exit_code=exit_code, oom=oom)
                    usage = at_rest(self.meter.kept())
                    settle(fresh, replace(ending, fields={**ending.fields, "usage": usage}))
                return
            except DatabaseError as error:
                if time.monotonic() > deadline:
                    raise
                log.warning("Job %s: its end is not written yet: %s", self.job.pk, error)
                connections.close_all()
                time.sleep(1)


def out_of_memory_words(used: int) -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"The kernel killed the process because memory ran out: it used {used / 2**30:.2f} GiB "
        f"of the machine's {total / 2**30:.1f} GiB."
    )


def wait_for(condition: Callable[[], Any], seconds: float, every: float = 0.1) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True
