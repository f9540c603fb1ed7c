import contextlib
import sys

import psutil
import pynvml
import pytest

from jobs import devices
from jobs.devices import Memory, devices_of_its_own, memories
from jobs.models import Job
from jobs.supervise import run_here
from tests.monitoring.fake_nvml import GIB, FakeGpu, FakeNvml


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")


def seen(environment):
    return environment.get("CUDA_VISIBLE_DEVICES")


def test_each_job_of_the_gpu_queue_sees_a_gpu_of_its_own_until_it_ends(two_gpus):
    with devices_of_its_own("gpu") as first:
        with devices_of_its_own("gpu") as second, devices_of_its_own("gpu") as third:
            assert [seen(first), seen(second), seen(third)] == ["3", "7", "3"], "a third one has to share"
        with devices_of_its_own("gpu") as next_one:
            assert seen(next_one) == "7"


def test_a_job_of_several_processes_sees_as_many_gpus_as_are_free(two_gpus):
    with devices_of_its_own("gpu", 2) as both, devices_of_its_own("gpu", 2) as later:
        assert [seen(both), seen(later)] == ["3,7", "3"], "the later one is told that they are too few"
    with devices_of_its_own("gpu") as first, devices_of_its_own("gpu", 2) as rest:
        assert [seen(first), seen(rest)] == ["3", "7"]


def test_other_queues_and_machines_without_a_gpu_are_left_as_they_are(two_gpus, monkeypatch, tmp_path):
    with devices_of_its_own("cpu") as environment:
        assert environment == {}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "none")
    with devices_of_its_own("gpu") as environment:
        assert environment == {}


def test_all_gpus_of_the_driver_are_used(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(devices, "DRIVER", tmp_path)
    assert devices.devices() == ["0", "1"]


def test_the_memory_of_gpus_is_asked_and_nvml_is_let_go(two_gpus, monkeypatch):
    gpus = [FakeGpu() for _ in range(8)]
    nvml = FakeNvml(*gpus)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert devices.gpu_memories() == [
        devices.Memory(f"GPU {place}, NVIDIA Test 9000", 80 * GIB, 50 * GIB) for place in (3, 7)
    ]
    assert nvml.starts == 1 and not nvml.running
    gpus[7].unsupported = {"MemoryInfo"}
    assert devices.gpu_memories() == [] and not nvml.running
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.gpu_memories() == [] and nvml.starts == 2


@pytest.mark.django_db(transaction=True)
def test_the_process_of_a_job_sees_it(two_gpus, sleepy):
    job, found = sleepy(steps=50, seconds=0.05), set()
    Job.objects.filter(pk=job.pk).update(queue="gpu")

    def look(job):
        with contextlib.suppress(psutil.Error):  # it may end in this moment
            found.update([seen(psutil.Process(job.pid).environ())] if job.pid else [])

    run_here(job, on_look=look)
    assert found == {"3"}


def test_the_memory_of_each_gpu_that_a_job_may_see_is_told_after_that_of_the_machine(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu(), FakeGpu(Name="Another")))
    own, *gpus = memories()
    assert own.device == "CPU" and 0 < own.free <= own.total == psutil.virtual_memory().total
    assert gpus == [Memory(device, 80 * GIB, 50 * GIB) for device in ("GPU 1, Another", "GPU 0, NVIDIA Test 9000")]


def test_without_a_driver_that_answers_the_memory_of_the_machine_is_all(two_gpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    assert [memory.device for memory in memories()] == ["CPU"]
