import json
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest
from django.core.management import call_command

from monitoring import probe as module
from monitoring.probe import Growth, Probe, mount_of
from monitoring.reading import SERIES, Reading, series_of
from tests.conftest import ROOT, manage
from tests.monitoring.fake_nvml import FakeNvml

Spent = namedtuple("Spent", "user nice system idle iowait irq softirq steal guest guest_nice")
Bytes = namedtuple("Bytes", "read_bytes write_bytes")
NO_GPU = FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


def spent(busy, idle, iowait=0.0):
    return Spent(busy, 0, 0, idle, iowait, 0, 0, 0, busy, 0)  # all of it by guests, which must not count twice


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_host_is_read_in_series_that_the_table_knows(tmp_path):
    probe = Probe(tmp_path, NO_GPU)
    first = probe.read()
    assert not any(name.startswith("cpu.") for name in first.values), "rates need two readings"
    assert "disk.read" not in first.values and "network.sent" not in first.values
    until = time.monotonic() + 0.3
    while time.monotonic() < until:  # the kernel counts in hundredths of a second
        pass
    values = probe.read().values
    assert all(series_of(name) for name in values)
    assert 0 < values["cpu.percent"] <= 100
    assert 0 < values["memory.used"] < values["memory.total"] == psutil.virtual_memory().total
    assert values[f"disk.{mount_of(tmp_path)[0]}.free"] > 0
    assert values["network.received"] >= 0
    assert probe.last.absent == {"gpu": "NVML Shared Library Not Found"}


def test_processor_time_is_that_between_two_readings(tmp_path, monkeypatch):
    probe = Probe(tmp_path, NO_GPU)
    times = [[spent(10, 90), spent(0, 100)], [spent(11, 91), spent(3, 101)]]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: times.pop(0))
    probe.read()
    values = probe.read().values
    assert (values["cpu.0.percent"], values["cpu.1.percent"]) == (50, 75)
    assert values["cpu.percent"] == pytest.approx(100 * 4 / 6, abs=0.05)


def test_a_core_whose_idle_time_went_back_is_left_out_once(tmp_path, monkeypatch):
    """The kernel's waiting time may."""
    probe = Probe(tmp_path, NO_GPU)
    times = [[spent(1, 1, 5), spent(1, 1)], [spent(2, 1, 4), spent(2, 2)], [spent(3, 2, 4), spent(3, 3)]]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: times.pop(0))
    probe.read()
    assert probe.read().values.keys() & {"cpu.0.percent", "cpu.1.percent"} == {"cpu.1.percent"}
    assert probe.read().values["cpu.0.percent"] == 50


def test_disk_rates_are_of_hardware_and_outlive_counters_that_begin_anew(tmp_path, monkeypatch, clock):
    counts = iter(
        [
            {"sda": Bytes(1000, 0), "sda1": Bytes(1000, 0), "dm-0": Bytes(1000, 0), "sdb": Bytes(2**32 - 10, 5)},
            {"sda": Bytes(3000, 0), "sda1": Bytes(3000, 0), "dm-0": Bytes(3000, 0), "sdb": Bytes(90, 5)},
            {"sda": Bytes(3000, 400), "sdb": Bytes(190, 5), "sdc": Bytes(10**9, 10**9)},
        ]
    )
    monkeypatch.setattr(psutil, "disk_io_counters", lambda perdisk, nowrap: next(counts))
    monkeypatch.setattr(module, "DEVICES", tmp_path)
    for disk in ("sda", "sdb", "sdc"):
        (tmp_path / "block" / disk / "device").mkdir(parents=True)
    probe = Probe(tmp_path, NO_GPU)
    assert "disk.read" not in probe.read().values
    clock.now += 2
    values = probe.read().values
    assert values["disk.read"] == 1000, "of sda alone: the counter of sdb began anew"
    clock.now += 4
    values = probe.read().values
    assert (values["disk.read"], values["disk.written"]) == (25, 100), "sdc was plugged in, with what it counted before"


def test_growth_of_what_wraps_is_unknown_for_once():
    growth = Growth()
    assert growth.since_last({"a": 5, "b": 5}) == {}
    assert growth.since_last({"a": 7, "b": 1}) == {"a": 2}
    assert growth.since_last({"a": 7, "b": 4, "c": 9}) == {"a": 0, "b": 3}


def test_a_part_that_cannot_be_read_leaves_the_others(tmp_path, monkeypatch):
    def gone(path):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(psutil, "disk_usage", gone)
    reading = Probe(tmp_path, NO_GPU).read()
    assert reading.absent[f"disk.{mount_of(tmp_path)[0]}"] == "[Errno 116] Stale file handle"
    assert "memory.used" in reading.values and "swap.total" in reading.values


def test_the_mount_is_that_of_the_folder():
    assert mount_of(Path("/proc/self/fd")) == ("/proc", "proc")
    assert mount_of(Path("/"))[0] == "/"


MOUNTS = """22 1 8:1 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /srv rw shared:1 - nfs4 server:/export rw
31 22 0:41 / /srv/fast\\040disk rw - xfs /dev/nvme0n1 rw
32 31 0:42 / /srv/fast\\040disk rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("folder", "mount"),
    [
        ("/home/x", ("/", "ext4")),
        ("/srv", ("/srv", "nfs4")),
        ("/srv/data", ("/srv", "nfs4")),
        ("/srv2", ("/", "ext4")),
        ("/srv/fast disk/d", ("/srv/fast disk", "tmpfs")),
    ],
)
def test_the_file_system_is_that_of_the_deepest_mount(folder, mount, tmp_path):
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert mount_of(Path(folder), tmp_path / "mountinfo") == mount


def test_names_of_series_are_told_apart():
    assert series_of("gpu.0.memory").what == "GPU memory in use"
    assert series_of("gpu.0.process.12.memory").coarsest == 1
    assert series_of("cpu.percent").coarsest == 600 and series_of("cpu.63.percent").coarsest == 10
    assert series_of("disk./mnt/a.b/c.used").unit == "bytes"
    assert series_of("weather.today") is None


def test_values_are_rounded_to_what_they_can_tell():
    reading = Reading()
    for name, value in {"cpu.percent": 12.3456, "load.1": 1.239, "disk.read": 12.7}.items():
        reading.add(name, value)
    assert reading.values == {"cpu.percent": 12.3, "load.1": 1.24, "disk.read": 13}


def test_the_command_prints_a_reading(capsys):
    plain = manage("monitor", "--once").stdout
    assert "memory.used" in plain and " bytes\n" in plain
    call_command("monitor", "--once", "--json")
    reading = json.loads(capsys.readouterr().out)
    assert reading["values"]["cpu.percent"] >= 0
    assert reading["values"].keys() | reading["absent"].keys() >= {"memory.used", "load.1", "network.sent"}


def test_every_series_is_documented():
    page = (ROOT / "docs" / "monitoring.md").read_text()
    for series in SERIES:
        assert f"| `{series.pattern}` | {series.unit or '–'} | {series.what} |" in page, series.pattern
