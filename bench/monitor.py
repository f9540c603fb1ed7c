"""What the monitor costs: processor time of a reading, and of keeping it, with coarser rows and deletions."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from bench.place import place

READINGS, EVERY = 600, 2  # seconds
PAUSE = 0.02  # seconds: the kernel's counters of processor time move by hundredths


def processor_ms(function: Callable[[], object], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        function()
        time.sleep(PAUSE)
    return 1000 * (time.process_time() - start) / times


def cost(folder: Path) -> dict[str, float]:
    from monitoring.models import Sample
    from monitoring.probe import Probe
    from monitoring.sampler import Sampler

    probe = Probe(folder)
    reading = processor_ms(probe.read, READINGS)
    sampler, now = Sampler(EVERY, folder), iter(range(1_800_000_000, 1_800_000_000 + EVERY * READINGS * 2, EVERY))
    with patch("time.time", lambda: float(next(now))):  # as if it had run for twenty minutes
        sampler.tick()
        whole = processor_ms(sampler.tick, READINGS)
    assert not sampler.trouble, sampler.trouble
    raw = Sample.objects.filter(resolution=1)
    return {
        "readings": READINGS,
        "series": len(probe.last.values),
        "reading_ms": round(reading, 2),
        "reading_and_rows_ms": round(whole, 2),
        "percent_of_a_core": round(whole / (10 * EVERY), 2),
        "rows": Sample.objects.count(),
        "bytes_of_a_reading": round(sum(len(json.dumps(row.mean)) for row in raw) / raw.count()),
    }


if __name__ == "__main__":
    with place() as folder:
        print(json.dumps(cost(folder), indent=2))
