"""NVML without a GPU, at the seam of pynvml: the functions that are used, with pynvml's own errors and constants."""

from types import SimpleNamespace

import pynvml
from pynvml import NVMLError

GIB = 2**30


class FakeGpu:
    def __init__(self, **changes):
        self.error = None  # of every call
        self.unsupported = set()
        self.processes = []
        self.samples = []  # of what processes computed: pid, smUtil, timeStamp in µs
        self.figures = {
            "Name": "NVIDIA Test 9000",
            "UtilizationRates": SimpleNamespace(gpu=97, memory=40),
            "MemoryInfo": SimpleNamespace(total=80 * GIB, used=30 * GIB, free=50 * GIB),
            "Temperature": 64,
            "PowerUsage": 312_460,
            "FanSpeed": 45,
            "TotalEccErrors": 2,
            "ClockInfo": {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619},
            **changes,
        }

    def answer(self, name):
        if self.error:
            raise NVMLError(self.error)
        if name in self.unsupported:
            raise NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.figures[name]


class FakeNvml:
    NVMLError = NVMLError

    def __init__(self, *gpus, init_error=None):
        self.gpus, self.init_error = list(gpus), init_error
        self.starts, self.running = 0, False

    def __getattr__(self, name):
        if name.startswith("NVML_"):
            return getattr(pynvml, name)
        if name.startswith("nvmlDeviceGet"):
            return lambda handle, *kind: self.ask(handle, name.removeprefix("nvmlDeviceGet"))
        raise AttributeError(name)

    def ask(self, handle, name):
        """A handle is of one start of NVML: after the next one it is worth nothing."""
        number, start = handle
        if not self.running or start != self.starts:
            raise NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        return self.gpus[number].answer(name)

    def nvmlInit(self):
        self.starts += 1
        if self.init_error:
            raise NVMLError(self.init_error)
        self.running = True

    def nvmlShutdown(self):
        if not self.running:
            raise NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        self.running = False

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, number):
        if self.gpus[number].error:
            raise NVMLError(self.gpus[number].error)
        return number, self.starts

    def nvmlDeviceGetClockInfo(self, handle, clock):
        return self.ask(handle, "ClockInfo")[clock]

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        self.ask(handle, "Name")
        return self.gpus[handle[0]].processes

    def nvmlDeviceGetProcessUtilization(self, handle, since):
        self.ask(handle, "Name")
        if "ProcessUtilization" in self.gpus[handle[0]].unsupported:
            raise NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        if found := [sample for sample in self.gpus[handle[0]].samples if sample.timeStamp > since]:
            return found
        raise NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
