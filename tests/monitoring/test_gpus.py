import logging
from types import SimpleNamespace

import pynvml
import pytest

from monitoring import gpus
from monitoring.gpus import Gpus
from monitoring.probe import Probe
from monitoring.reading import Reading, series_of
from tests.monitoring.fake_nvml import GIB, FakeGpu, FakeNvml


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(gpus, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def read(probe):
    reading = Reading()
    probe.read(reading)
    return reading


def test_each_gpu_is_read_with_its_units():
    nvml = FakeNvml(FakeGpu(), FakeGpu(Temperature=41))
    nvml.gpus[1].processes = [
        SimpleNamespace(pid=4711, usedGpuMemory=3 * GIB),
        SimpleNamespace(pid=4712, usedGpuMemory=None),
    ]
    reading = read(Gpus(nvml))
    assert {name: value for name, value in reading.values.items() if name.startswith("gpu.0.")} == {
        "gpu.0.utilization": 97,
        "gpu.0.memory": 30 * GIB,
        "gpu.0.memory.total": 80 * GIB,
        "gpu.0.temperature": 64,
        "gpu.0.power": 312.5,
        "gpu.0.clock.sm": 1980,
        "gpu.0.clock.memory": 2619,
        "gpu.0.fan": 45,
        "gpu.0.ecc.uncorrected": 2,
    }
    assert reading.values["gpu.1.temperature"] == 41
    processes = {name: value for name, value in reading.values.items() if ".process." in name}
    assert processes == {"gpu.1.process.4711.memory": 3 * GIB}
    assert all(series_of(name) for name in reading.values)
    assert not reading.absent


@pytest.mark.parametrize(
    ("nvml", "why"),
    [
        (FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND), "NVML Shared Library Not Found"),
        (FakeNvml(init_error=pynvml.NVML_ERROR_DRIVER_NOT_LOADED), "Driver Not Loaded"),
        (FakeNvml(), "The driver sees no GPU"),
    ],
)
def test_without_a_gpu_the_reading_says_why(nvml, why):
    reading = read(Gpus(nvml))
    assert reading.values == {}
    assert reading.absent == {"gpu": why}


def test_what_a_gpu_cannot_say_is_left_out_and_named():
    nvml = FakeNvml(FakeGpu())
    nvml.gpus[0].unsupported = {"FanSpeed", "TotalEccErrors"}
    reading = read(Gpus(nvml))
    assert "gpu.0.power" in reading.values and "gpu.0.fan" not in reading.values
    assert reading.absent == {"gpu.0.fan": "Not Supported", "gpu.0.ecc.uncorrected": "Not Supported"}


def test_a_gpu_that_vanishes_takes_no_other_with_it_and_may_return():
    nvml = FakeNvml(FakeGpu(), FakeGpu())
    probe = Gpus(nvml)
    read(probe)
    nvml.gpus[1].error = pynvml.NVML_ERROR_GPU_IS_LOST
    reading = read(probe)
    assert "gpu.0.power" in reading.values and not any(name.startswith("gpu.1.") for name in reading.values)
    assert reading.absent == {"gpu.1": "GPU is lost"}
    assert probe.names[1] == "NVIDIA Test 9000", "the page can still say which one it was"
    nvml.gpus[1].error = None
    assert "gpu.1.power" in read(probe).values
    assert nvml.starts == 1, "NVML was not started anew, which would disturb the other"


def test_a_gpu_that_is_lost_from_the_start_takes_no_other_with_it():
    lost = FakeGpu()
    lost.error = pynvml.NVML_ERROR_GPU_IS_LOST
    reading = read(Gpus(FakeNvml(lost, FakeGpu())))
    assert reading.absent == {"gpu.0": "GPU is lost"}
    assert "gpu.1.power" in reading.values


def test_after_the_driver_was_reloaded_gpus_are_found_again(clock):
    nvml = FakeNvml(FakeGpu())
    probe = Gpus(nvml)
    read(probe)
    clock.now += 3600
    nvml.running = False  # as if it had never been started
    assert read(probe).absent == {"gpu.0": "Uninitialized"}
    assert "gpu.0.power" in read(probe).values


def test_nvml_is_not_started_again_and_again(clock):
    nvml = FakeNvml(init_error=pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    probe = Gpus(nvml)
    for _ in range(20):  # 40 s
        assert read(probe).absent == {"gpu": "Driver Not Loaded"}
        clock.now += 2
    assert nvml.starts == 2
    nvml.init_error, nvml.gpus = None, [FakeGpu()]
    clock.now += 30
    reading = read(probe)
    assert reading.values and not reading.absent


def test_what_is_absent_is_said_once_and_aloud_where_it_was_there_before(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    nvml = FakeNvml(FakeGpu(), FakeGpu())
    nvml.gpus[0].unsupported = {"FanSpeed"}
    probe = Probe(tmp_path, nvml)
    for _ in range(3):
        probe.read()
    nvml.gpus[1].error = pynvml.NVML_ERROR_GPU_IS_LOST
    for _ in range(3):
        probe.read()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "gpu.0.fan is not monitored: Not Supported"),
        ("WARNING", "gpu.1 is not monitored: GPU is lost"),
    ]
