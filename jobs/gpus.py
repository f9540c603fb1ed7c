"""GPUs by NVML: how much memory they have, and what processes use of them."""

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

AGAIN = 30.0  # seconds between two starts of NVML, which may load the driver


@dataclass
class GpuReading:
    """What NVML does not say is None."""

    memory: dict[int, int] | None = None  # bytes of each process
    seconds: float | None = None  # GPU-seconds since the reading before
    share: float = 0.0  # GPUs that were busy at a time, over what the samples cover


class Gpus:
    """Those with these names, as CUDA_VISIBLE_DEVICES has them."""

    def __init__(self, names: Sequence[str], nvml: Any = None) -> None:
        self.names, self.nvml = names, nvml
        self.handles: list[Any] = []
        self.read_until: list[int] = []  # of each GPU, by the clock of its samples in µs; 0 before the first
        self.start_at = 0.0
        self.known = False  # has NVML ever named one of the processes?

    def read(self, pids: Collection[int], elapsed: float) -> GpuReading:
        """`elapsed`: seconds since the last call. In a container NVML may give the numbers that processes have on its
        host: until it names one of `pids`, nothing is said of them."""
        reading = GpuReading()
        if not self.handles and not self.start():
            return reading
        try:
            held = self.held(pids)
        except self.nvml.NVMLError:
            self.stop()
            return reading
        self.known = self.known or bool(held)
        self.read_busy(pids, elapsed, reading)
        if not self.known:
            return GpuReading()
        reading.memory = None if None in held.values() else {pid: size for pid, size in held.items() if size}
        return reading

    def facts(self) -> list[tuple[str, Any]]:
        """Name and memory of each; empty where NVML does not say."""
        if not self.handles and not self.start():
            return []
        nvml = self.nvml
        try:
            return [(nvml.nvmlDeviceGetName(one), nvml.nvmlDeviceGetMemoryInfo(one)) for one in self.handles]
        except nvml.NVMLError:
            return []

    def start(self) -> bool:
        if not self.names or time.monotonic() < self.start_at:
            return False
        self.start_at = time.monotonic() + AGAIN
        if self.nvml is None:
            import pynvml

            self.nvml = pynvml
        try:
            self.nvml.nvmlInit()
            self.handles = [handle_of(self.nvml, name) for name in self.names]
        except self.nvml.NVMLError:
            self.stop()
        self.read_until = [0] * len(self.handles)
        return bool(self.handles)

    def close(self) -> None:
        """NVML counts who started it: left open, it would outlive a driver that is loaded anew."""
        if self.handles:
            self.stop()

    def stop(self) -> None:
        self.handles = []
        with contextlib.suppress(self.nvml.NVMLError):
            self.nvml.nvmlShutdown()

    def held(self, pids: Collection[int]) -> dict[int, int | None]:
        """By process, over all GPUs. None where NVML does not say how much, as in some containers."""
        held: dict[int, int | None] = {}
        for handle in self.handles:
            for process in self.nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                if process.pid in pids:
                    before, size = held.get(process.pid, 0), process.usedGpuMemory
                    held[process.pid] = None if before is None or size is None else before + size
        return held

    def read_busy(self, pids: Collection[int], elapsed: float, reading: GpuReading) -> None:
        seconds = 0.0
        for place, handle in enumerate(self.handles):
            since = self.read_until[place]
            try:
                samples = self.samples(handle, since)
            except self.nvml.NVMLError:
                return
            if not samples:  # nobody computed
                self.read_until[place] = since and since + round(elapsed * 1e6)
                continue
            until = self.read_until[place] = samples[-1].timeStamp
            if since:  # the first samples reach back before the job
                used = computed(samples, pids, since)
                seconds += used / 1e6
                reading.share += used / (until - since)
        reading.seconds = seconds

    def samples(self, handle: Any, since: int) -> list[Any]:
        """Newer than `since`, oldest first."""
        nvml = self.nvml
        try:
            found = nvml.nvmlDeviceGetProcessUtilization(handle, since)
        except nvml.NVMLError as error:
            if error.value in (nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_SUCCESS):  # pynvml raises the latter for "none"
                return []
            raise
        return sorted((one for one in found if one.timeStamp > since), key=lambda one: one.timeStamp)


def handle_of(nvml: Any, name: str) -> Any:
    """Of a GPU by its number, or by the UUID that CUDA_VISIBLE_DEVICES may hold as well."""
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)


def computed(samples: Sequence[Any], pids: Collection[int], since: int) -> float:
    """µs: of each sample its share of the multiprocessors, times what passed since the one before."""
    total, before = 0.0, dict.fromkeys(pids, since)
    for one in samples:
        if one.pid in before:
            total += one.smUtil / 100 * (one.timeStamp - before[one.pid])
            before[one.pid] = one.timeStamp
    return total
