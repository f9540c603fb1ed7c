"""What the monitor costs: processor time of `mistudio monitor --keep`, which does what the site's thread does."""

import json
import subprocess
import sys
import time

import psutil

from bench.place import ROOT, place

START, SECONDS = 20, 180


def processor_seconds(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return spent.user + spent.system


def cost() -> dict[str, float]:
    from django.conf import settings

    from monitoring.models import Sample

    with subprocess.Popen([sys.executable, "manage.py", "monitor", "--keep"], cwd=ROOT) as monitor:
        process = psutil.Process(monitor.pid)
        time.sleep(START)
        before, start, kept = processor_seconds(process), time.monotonic(), Sample.objects.count()
        time.sleep(SECONDS)
        spent, seconds = processor_seconds(process) - before, time.monotonic() - start
        monitor.terminate()
    raw = Sample.objects.filter(resolution=1)
    return {
        "seconds": round(seconds),
        "every_s": settings.MONITOR_SECONDS,
        "rows": Sample.objects.count() - kept,
        "series": len(raw.latest("at").mean),
        "bytes_of_a_reading": round(sum(len(json.dumps(row.mean)) for row in raw) / raw.count()),
        "processor_s": round(spent, 2),
        "percent_of_a_core": round(100 * spent / seconds, 2),
    }


if __name__ == "__main__":
    with place():
        print(json.dumps(cost(), indent=2))
