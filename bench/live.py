"""From a worker's change of a job to the frame in 20 browsers' sockets: p50 and p99."""

import asyncio
import json
import sys
import time

import websockets

from bench.place import ROOT, place, quantile, server, session_cookie

PAGES, EVENTS, EVERY = 20, 200, 0.05
WORKER = """
import django, sys, time
django.setup()
from jobs.live import publish_job
from jobs.models import Job
job = Job.objects.get(pk=int(sys.argv[1]))
for n in range({events}):
    Job.objects.filter(pk=job.pk).update(unit=f"written-{{time.time():.6f}}-", total=100, done=n % 100)
    publish_job(job)
    time.sleep({every})
"""


async def listen(url: str, cookie: str, job: int, until: float, delays: list[float]) -> None:
    """The job's unit holds the moment at which the worker wrote it."""
    headers = {"Cookie": cookie, "Origin": url.replace("ws", "http", 1)}
    async with websockets.connect(f"{url}/live/?t=jobs.{job}", additional_headers=headers, max_size=None) as socket:
        seen = ""
        while time.time() < until:
            try:
                frame = str(await asyncio.wait_for(socket.recv(), 1))
            except TimeoutError:
                continue
            stamp = frame.partition("written-")[2].partition("-")[0]
            if stamp and stamp != seen and stamp.replace(".", "").isdecimal():
                delays.append(1000 * (time.time() - float(stamp)))
                seen = stamp


async def measure(url: str, cookie: str, job: int) -> list[float]:
    delays: list[float] = []
    until = time.time() + EVENTS * EVERY + 8
    clients = [asyncio.create_task(listen(url, cookie, job, until, delays)) for _ in range(PAGES)]
    await asyncio.sleep(2)
    code = WORKER.format(events=EVENTS, every=EVERY)
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(job), cwd=ROOT)
    await asyncio.gather(worker.wait(), *clients)
    return delays


def latency() -> dict[str, float]:
    with place():
        from jobs.models import Job, State
        from mistudio.models import Team

        job = Job.objects.create(team=Team.default(), kind="sleepy", queue="cpu", title="bench", state=State.RUNNING)
        cookie = session_cookie()
        with server() as url:
            delays = asyncio.run(measure(url.replace("http", "ws", 1), cookie, job.pk))
    return {
        "pages": PAGES,
        "events": EVENTS,
        "frames": len(delays),
        "p50_ms": quantile(delays, 0.5),
        "p99_ms": quantile(delays, 0.99),
    }


if __name__ == "__main__":
    print(json.dumps(latency(), indent=2))
