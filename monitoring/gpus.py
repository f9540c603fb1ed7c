"""Reads GPUs by NVML. None, no driver, one that vanishes or cannot say something: the reading goes on without it."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pynvml

from monitoring.reading import Reading

AGAIN = 30.0  # seconds between two starts of NVML, which may load the driver


class Gpus:
    def __init__(self, nvml: Any = pynvml) -> None:
        self.nvml = nvml
        self.handles: dict[int, Any] = {}
        self.names: dict[int, str] = {}
        self.lost: dict[str, str] = {}  # what NVML could not give when it started, and why
        self.start_at = 0.0

    def read(self, reading: Reading) -> None:
        if not self.handles and time.monotonic() >= self.start_at:
            self.start()
        reading.absent |= self.lost
        answers = [self.read_gpu(number, handle, reading) for number, handle in self.handles.items()]
        if answers and not any(answers):  # the driver was reloaded, or the last GPU is gone
            self.stop({f"gpu.{number}": reading.absent[f"gpu.{number}"] for number in self.handles})

    def start(self) -> None:
        self.start_at = time.monotonic() + AGAIN
        self.lost = {}
        try:
            self.nvml.nvmlInit()
            count = self.nvml.nvmlDeviceGetCount()
        except self.nvml.NVMLError as error:
            self.stop({"gpu": str(error)})
            return
        for number in range(count):
            try:
                self.handles[number] = self.nvml.nvmlDeviceGetHandleByIndex(number)
                self.names[number] = self.nvml.nvmlDeviceGetName(self.handles[number])
            except self.nvml.NVMLError as error:
                self.lost[f"gpu.{number}"] = str(error)
        if not self.handles:
            self.stop(self.lost or {"gpu": "The driver sees no GPU"})

    def stop(self, lost: dict[str, str]) -> None:
        self.handles, self.lost = {}, lost
        with contextlib.suppress(self.nvml.NVMLError):
            self.nvml.nvmlShutdown()

    def read_gpu(self, number: int, handle: Any, reading: Reading) -> bool:
        """Whether it answered at all."""
        known, unknown = Reading(), {}
        for figure, ask in self.figures(handle).items():
            name = f"gpu.{number}.{figure}"
            try:
                known.add(name, ask())
            except self.nvml.NVMLError as error:
                unknown[name] = str(error)
        if not known.values:
            reading.absent[f"gpu.{number}"] = next(iter(unknown.values()))
            return False
        reading.values |= known.values
        reading.absent |= unknown
        self.read_processes(number, handle, reading)
        return True

    def figures(self, handle: Any) -> dict[str, Callable[[], float]]:
        nvml = self.nvml
        return {
            "utilization": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "memory": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "memory.total": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
            "temperature": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "clock.sm": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "clock.memory": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "fan": lambda: nvml.nvmlDeviceGetFanSpeed(handle),
            "ecc.uncorrected": lambda: nvml.nvmlDeviceGetTotalEccErrors(
                handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            ),
        }

    def read_processes(self, number: int, handle: Any, reading: Reading) -> None:
        """A container may hide how much each has: then NVML gives None."""
        with reading.without(f"gpu.{number}.process", self.nvml.NVMLError):
            for process in self.nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                if process.usedGpuMemory is not None:
                    reading.add(f"gpu.{number}.process.{process.pid}.memory", process.usedGpuMemory)
