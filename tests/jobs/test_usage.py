"""What jobs use is measured from real processes; GPUs are NVML's fake."""

import contextlib
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from jobs import usage
from jobs.gpus import AGAIN, Gpus
from jobs.usage import Counts, Figure, Meter, at_rest, figures_of
from tests.monitoring.fake_nvml import FakeGpu, FakeNvml

MIB = 2**20

# It says its number when it is ready, and ends when it is told so.
PROGRAM = """
import os, subprocess, sys, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
def ready():
    print(time.process_time(), flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def running(program):
    """A process that leads its own group, as that of a job does, once it is ready."""
    command = [sys.executable, "-c", PROGRAM + program]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        child.said = float(child.stdout.readline())
        yield child
    finally:
        os.killpg(child.pid, 9)
        child.wait()
        child.stdin.close()
        child.stdout.close()


def measured(child, **options):
    meter = Meter({}, **options)
    meter.look(child.pid)
    return meter


def on_disk(folder):
    """Does what is written there go to a disk?"""
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype not in ("tmpfs", "ramfs")


def test_processor_time_memory_and_bytes_are_those_that_were_used(tmp_path):
    program = f"""
burn(0.2)
hoard = b"x" * {64 * MIB}
with open({str(tmp_path / "written")!r}, "wb") as file:
    file.write(bytes({8 * MIB}))
    file.flush()
    os.fsync(file.fileno())
ready()
"""
    with running(program) as child:
        figures = measured(child).figures
    assert figures["cpu"].total == pytest.approx(child.said, abs=0.05)
    assert 64 * MIB <= figures["memory"].now < 90 * MIB
    expected = 8 * MIB if on_disk(tmp_path) else 0
    assert expected <= figures["written"].total <= expected + MIB
    assert figures["gpu"].seconds == figures["gpu_memory"].seconds == 0


def test_what_a_process_starts_counts_while_it_lives_and_after_it_ended():
    program = """
work = "import time\\nwhile time.process_time() < 0.15: pass\\nprint(flush=True); input()"
start = lambda: subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
start().communicate(b"\\n")
other = start()
other.stdout.readline()
ready()
other.communicate(b"\\n")
ready()
"""
    with running(program) as child:
        meter = measured(child)
        living = meter.figures["cpu"].total
        assert len(meter.processes) == 2, "one has ended"
        assert living >= child.said + 0.3 - 0.05, "in ticks of 10 ms each"
        child.stdin.write("\n")
        child.stdin.flush()
        child.stdout.readline()
        meter.look(child.pid, last=True)
    assert len(meter.processes) == 1
    assert living <= meter.figures["cpu"].total < living + 0.2


def test_pages_that_processes_share_count_once():
    program = f"""
hoard = b"x" * {64 * MIB}
if not os.fork():
    time.sleep(60)
ready()
"""
    with running(program) as child:
        figures = measured(child).figures
    assert 64 * MIB <= figures["memory"].now < 90 * MIB


def test_what_it_used_to_its_last_moment_is_read_of_a_process_that_has_ended():
    with running("ready()\nburn(0.1)") as child:
        meter = measured(child)
        before = meter.figures["cpu"].total
        child.stdin.write("\n")
        child.stdin.flush()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        memory = meter.figures["memory"].seconds
        meter.look(child.pid, last=True)
    assert meter.figures["cpu"].total >= before + 0.09
    assert meter.processes == [] and meter.figures["memory"].seconds == memory


def test_a_look_at_processes_costs_little():
    with running("ready()") as child:
        meter = measured(child)
        before = time.process_time()
        for _ in range(20):
            meter.look(child.pid, last=True)
        assert (time.process_time() - before) / 20 < 0.01 * usage.EVERY


# ---- what cannot be read


def counts(cpu, read=0, written=0, ended=False):
    return Counts(cpu, cpu, read, written, ended)


def sequence(monkeypatch, *looks):
    """What looks find, two seconds apart."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(usage.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(usage, "memory_of", lambda pids: dict.fromkeys(pids, MIB))
    meter = Meter({})
    for found in looks:
        clock.now += 2
        monkeypatch.setattr(usage, "read_group", lambda group, found=found: found)
        meter.look(1)
    return meter


def test_a_process_that_nobody_waited_for_keeps_what_was_seen_of_it(monkeypatch):
    meter = sequence(monkeypatch, {1: counts(1), 2: counts(40)}, {1: counts(2)}, {1: counts(5)})
    assert meter.figures["cpu"].total == 41 + 3


def test_a_look_in_the_moment_in_which_a_process_is_waited_for_is_left_out(monkeypatch):
    meter = sequence(monkeypatch, {1: counts(1)}, None, {1: counts(5)})
    assert (meter.figures["cpu"].total, meter.figures["cpu"].seconds) == (5, 6)


def test_bytes_that_may_not_be_read_are_absent_and_the_rest_is_measured(monkeypatch):
    meter = sequence(monkeypatch, {1: counts(1, read=None, written=7)}, {1: counts(2, read=None, written=9)})
    assert meter.kept().keys() == {"cpu", "written", "memory", "processes"}


def test_a_group_is_read_again_while_processes_of_it_go(monkeypatch):
    there = iter([[1, 2], [1], [1], [1]])
    monkeypatch.setattr(usage, "members", lambda group: next(there))
    monkeypatch.setattr(usage, "counts_of", lambda pid: counts(pid))
    assert usage.read_group(1).keys() == {1}
    there = iter([[1, 2], [1]] * usage.TRIES)
    assert usage.read_group(1) is None


def test_no_figure_comes_from_a_process_that_is_gone():
    gone = 2**22 + 1
    assert usage.counts_of(gone) is None and usage.memory_of([gone]) is None
    assert usage.memory_of([gone, os.getpid()]) is None, "the sum would lack one"
    meter = Meter({})
    meter.look(gone)
    assert meter.kept() == {}


def test_memory_that_takes_long_to_read_is_read_rarely_and_its_last_value_counts_on(monkeypatch):
    reading = SimpleNamespace(n=0, took=0.0)

    def slow(pids):
        reading.n, reading.took = reading.n + 1, reading.took + 0.05
        return dict.fromkeys(pids, reading.n * MIB)

    monkeypatch.setattr(usage.time, "thread_time", lambda: reading.took)
    meter = sequence(monkeypatch)
    monkeypatch.setattr(usage, "memory_of", slow)
    clock = iter(range(102, 200, 2))
    monkeypatch.setattr(usage.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(usage, "read_group", lambda group: {1: counts(0), 2: counts(0)})
    for _ in range(4):
        meter.look(1)
    assert (reading.n, meter.figures["memory"].total) == (2, (2 * 3 + 4) * 2 * MIB), "50 ms are 1 % of 5 s"
    monkeypatch.setattr(usage, "read_group", lambda group: {1: counts(0)})
    meter.look(1)
    assert meter.figures["memory"].now == 3 * MIB, "of a lone process it takes no time"


# ---- figures


def test_levels_add_up_to_a_mean_by_time_and_to_a_peak():
    figure = Figure()
    for level, seconds in ((3, 2), (1, 6), (50, 0.01)):
        figure.add(level * seconds, seconds)
    assert figure.total == 12.5 and figure.mean == pytest.approx(12.5 / 8.01)
    assert figure.peak == 3, "that of a moment is none"


def test_the_figures_of_an_attempt_go_on_from_those_before_it(monkeypatch):
    first = sequence(monkeypatch, {1: counts(4)}).kept()
    assert first["processes"] and first["cpu"]["now"] == 2
    meter = Meter(first)
    monkeypatch.setattr(usage, "read_group", lambda group: {1: counts(1)})
    now = usage.time.monotonic() + 2
    monkeypatch.setattr(usage.time, "monotonic", lambda: now)
    meter.look(1)
    assert meter.kept()["cpu"] == {"total": 5, "seconds": 4, "peak": 2, "now": 0.5}
    assert at_rest(meter.kept()) == {
        "cpu": {"total": 5, "seconds": 4, "peak": 2},
        "memory": {"total": 4 * MIB, "seconds": 4, "peak": MIB},
        **dict.fromkeys(("read", "written"), {"total": 0, "seconds": 4, "peak": 0}),
    }


def test_of_many_processes_those_that_hold_most_are_kept(monkeypatch):
    meter = sequence(monkeypatch, {pid: counts(0) for pid in range(1, 100)})
    meter.processes[70]["memory"] = 2 * MIB
    meter.processes[80]["gpu_memory"] = MIB
    kept = [one["pid"] for one in meter.kept()["processes"]]
    assert len(kept) == usage.MOST_PROCESSES and kept[:2] == [81, 71]


# ---- GPUs


def sample(pid, share, at):
    return SimpleNamespace(pid=pid, smUtil=share, timeStamp=at)


def process(pid, memory):
    return SimpleNamespace(pid=pid, usedGpuMemory=memory)


@pytest.fixture
def gpu():
    made = FakeGpu()
    made.processes = [process(7, 10 * MIB), process(8, 5 * MIB), process(99, 900 * MIB)]
    made.samples = [sample(7, 50, 1_000_000)]
    return made


def test_gpu_memory_and_seconds_are_those_of_the_processes(gpu):
    other = FakeGpu()
    other.processes = [process(7, 3 * MIB)]
    gpus = Gpus(["0", "1"], nvml=FakeNvml(gpu, other))
    first = gpus.read([7, 8], 2)
    assert first.memory == {7: 13 * MIB, 8: 5 * MIB} and first.seconds == 0, "samples may be from before the job"
    gpu.samples += [sample(7, 80, 3_000_000), sample(8, 10, 3_000_000), sample(99, 10, 3_000_000)]
    second = gpus.read([7, 8], 2)
    assert (second.seconds, second.share) == (pytest.approx(1.8), pytest.approx(0.9))
    idle = gpus.read([7, 8], 2)
    assert (idle.seconds, idle.share) == (0, 0)
    gpu.samples += [sample(7, 100, 6_000_000)]  # 1 s after the idle look
    assert gpus.read([7, 8], 2).seconds == pytest.approx(1)


def test_processes_that_nvml_does_not_name_are_not_measured_on_its_gpus(gpu):
    gpus = Gpus(["0"], nvml=FakeNvml(gpu))
    reading = gpus.read([4711], 2)
    assert (reading.memory, reading.seconds) == (None, None)
    gpu.processes.append(process(4711, None))
    reading = gpus.read([4711], 2)
    assert (reading.memory, reading.seconds) == (None, 0), "it is there, and how much it holds is not said"
    gpu.processes.clear()
    assert gpus.read([4711], 2).memory == {}, "it has given back what it held"


def test_a_gpu_that_does_not_say_who_computes_still_says_who_holds_memory(gpu):
    gpu.unsupported = {"ProcessUtilization"}
    reading = Gpus(["0"], nvml=FakeNvml(gpu)).read([7], 2)
    assert (reading.memory, reading.seconds) == ({7: 10 * MIB}, None)


def test_without_a_driver_or_without_a_gpu_nothing_is_asked(gpu):
    nvml = FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    gpus = Gpus(["0"], nvml=nvml)
    assert gpus.read([7], 2).memory is None and gpus.read([7], 2).seconds is None
    assert nvml.starts == 1, "loading a driver takes long"
    assert Gpus([], nvml=FakeNvml(gpu)).read([7], 2).memory is None


def test_a_gpu_that_is_lost_is_asked_again_later(gpu, monkeypatch):
    gpus = Gpus(["0"], nvml=FakeNvml(gpu))
    gpus.read([7], 2)
    gpu.error = pynvml.NVML_ERROR_GPU_IS_LOST
    assert gpus.read([7], 2).memory is None
    gpu.error = None
    assert gpus.read([7], 2).memory is None
    gpus.start_at -= AGAIN
    assert gpus.read([7], 2).memory == {7: 10 * MIB}


def test_the_gpu_of_a_job_is_part_of_its_figures(gpu, monkeypatch):
    meter = sequence(monkeypatch)
    meter.gpus = Gpus(["0"], nvml=FakeNvml(gpu))
    monkeypatch.setattr(usage, "read_group", lambda group: {7: counts(1)})
    for at in (1, 2):
        gpu.samples.append(sample(7, 75, at * 2_000_000 + 1_000_000))
        now = usage.time.monotonic() + 2
        monkeypatch.setattr(usage.time, "monotonic", lambda now=now: now)
        meter.look(7)
    kept = meter.kept()
    assert kept["gpu"] == {"total": 1.5, "seconds": 4, "peak": 0.75, "now": 0.75}
    assert kept["gpu_memory"] == {"total": 40 * MIB, "seconds": 4, "peak": 10 * MIB, "now": 10 * MIB}
    assert kept["processes"][0]["gpu_memory"] == 10 * MIB
    assert figures_of(kept)["gpu"].mean == 0.375
