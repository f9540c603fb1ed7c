"""The live path under load: pages whose job a worker changes, pages of which nothing is heard, and pages that all come
back at once.

An event says “look again”: it is delivered to a page with the first frame whose state is the one that the event was
about or a newer one, and lost if none came by the end. A frame is out of order if its state is older than that of one
before."""

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil

from bench.page import Page, open_page
from bench.place import ROOT, place, quantile, server, session_cookie

STEADY = 20  # pages that go on watching while others come
WORKER = """
import django, sys, time
django.setup()
from django.db import transaction
from jobs.live import publish_job
from jobs.models import Job
pk, rate, seconds = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
job, start = Job.objects.get(pk=pk), time.time() + 1
for n in range(int(rate * seconds)):
    time.sleep(max(0, start + n / rate - time.time()))
    at = time.time()
    with transaction.atomic():
        Job.objects.filter(pk=pk).update(unit=f"number-{n}-", total=100, done=n % 100, percent=n % 100)
        publish_job(job)
    print(at, flush=True)
"""


def processor_seconds(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return spent.user + spent.system


class Site:
    """A running site, and somebody who watches a job there."""

    def __init__(self, url: str) -> None:
        from django.conf import settings

        from jobs.studio import running_studio

        self.url, self.cookie = url, session_cookie()
        self.process = psutil.Process(running_studio(settings.MISTUDIO_DATA)["pid"])

    def new_jobs(self) -> None:
        """One that a worker changes, and one that nothing happens to."""
        from jobs.models import Job, State
        from mistudio.models import Team

        team = Team.default()
        jobs = [Job.objects.create(team=team, kind="sleepy", title="bench", state=State.RUNNING) for _ in range(2)]
        self.job = jobs[0].pk
        self.busy, self.quiet = (f"/live/?t=shell.{team.pk}&t=jobs.{job.pk}" for job in jobs)

    async def pages(self, count: int) -> list[Page]:
        opened = [open_page(self.cookie, self.url, self.busy) for _ in range(count)]
        return list(await asyncio.gather(*opened))

    async def insistent(self) -> tuple[Page, int]:
        """A page once it got its first frame, and how often it tried: it waits before each try as htmx does."""
        for tries in range(8):
            await asyncio.sleep(random.uniform(0, 2**tries))
            page = await open_page(self.cookie, self.url, self.quiet)
            while not page.frames and not page.closed.is_set():
                await asyncio.sleep(0.05)
            if page.frames:
                return page, tries + 1
        raise SystemExit("A page tried for minutes and got nothing.")

    async def change(self, rate: float, seconds: float) -> list[float]:
        """A worker changes the job; returns when it did, for each number."""
        command = [sys.executable, "-c", WORKER, str(self.job), str(rate), str(seconds)]
        pipe = asyncio.subprocess.PIPE
        worker = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=pipe, env={**os.environ})
        said, _ = await worker.communicate()
        assert worker.returncode == 0
        return [float(line) for line in said.split()]

    def resident(self) -> int:
        return self.process.memory_info().rss


@contextlib.contextmanager
def site() -> Iterator[Site]:
    with place():
        os.environ["MISTUDIO_MONITOR_SECONDS"] = "0"  # `make bench ARGS=monitor` measures that
        with server() as url:
            yield Site(url)


def close(pages: list[Page]) -> None:
    for page in pages:
        page.transport.abort()


def deliveries(pages: list[Page], written: list[float]) -> dict[str, Any]:
    delays, lost, disordered, frames = [], 0, 0, 0
    for page in pages:
        n = newest = 0
        for at, number, *_ in page.frames:
            frames += number >= 0
            disordered += 0 <= number < newest
            newest = max(newest, number)
            while n <= min(number, len(written) - 1):
                delays.append(1000 * (at - written[n]))
                n += 1
        lost += len(written) - n
    figures = {f"p{round(100 * q)}_ms": quantile(delays, q) for q in (0.5, 0.95, 0.99)}
    return {"events": len(written), "frames": frames, "lost": lost, "out_of_order": disordered, **figures}


async def load(site: Site, sockets: int, rate: float, seconds: float) -> dict[str, Any]:
    pages = await site.pages(sockets)
    await asyncio.sleep(3)
    spent = processor_seconds(site.process)
    mine = time.process_time()
    written = await site.change(rate, seconds)
    await asyncio.sleep(1)
    spent, mine = processor_seconds(site.process) - spent, time.process_time() - mine
    close(pages)
    frames = [frame for frame in pages[0].frames if frame[1] >= 0]
    return {
        "sockets": sockets,
        "rate": rate,
        "seconds": seconds,
        **deliveries(pages, written),
        "html_bytes": quantile([frame[2] for frame in frames], 0.5),
        "wire_bytes": quantile([frame[3] for frame in frames], 0.5),
        "site_percent_of_a_core": round(100 * spent / seconds, 1),
        "pages_percent_of_a_core": round(100 * mine / seconds, 1),
    }


async def idle(site: Site, sockets: int, seconds: float) -> dict[str, Any]:
    pages = await site.pages(sockets)
    await asyncio.sleep(5)
    spent = processor_seconds(site.process)
    await asyncio.sleep(seconds)
    spent = processor_seconds(site.process) - spent
    still = sum(not page.closed.is_set() for page in pages)
    close(pages)
    return {"sockets": still, "seconds": seconds, "site_percent_of_a_core": round(100 * spent / seconds, 2)}


async def rush(site: Site, sockets: int) -> dict[str, Any]:
    """All lost their sockets in one moment, and come back."""
    steady = await site.pages(STEADY)
    await asyncio.sleep(3)
    before = site.resident()
    changes = asyncio.create_task(site.change(20, 20))
    while not all(page.frames[-1][1] > 20 for page in steady):
        await asyncio.sleep(0.1)
    start = time.time()
    come = await asyncio.gather(*[site.insistent() for _ in range(sockets)])
    written = await changes
    await asyncio.sleep(1)
    after = site.resident()
    close(steady + [page for page, _ in come])
    shown = [page.frames[0][0] - start for page, _ in come]
    times = [[frame[0] for frame in page.frames if frame[1] >= 0] for page in steady]
    pauses = [b - a for came in times for a, b in zip(came, came[1:], strict=False)]
    return {
        "sockets": sockets,
        "tries": sum(tries for _, tries in come),
        "first_frame_p50_s": quantile(shown, 0.5),
        "first_frame_last_s": round(max(shown), 2),
        "others": deliveries(steady, written),
        "others_longest_pause_s": round(max(pauses), 2),
        "kib_per_socket": round((after - before) / 1024 / sockets, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, default=200)
    parser.add_argument("--rate", type=float, default=20, help="events per second")
    parser.add_argument("--seconds", type=float, default=60, help="of events")
    parser.add_argument("--idle", type=float, default=60, help="seconds without events")
    parser.add_argument("--rush", type=int, default=1000, help="pages that come back at once")
    given = parser.parse_args()
    with site() as here:
        for name, measure in (
            ("load", load(here, given.sockets, given.rate, given.seconds)),
            ("idle", idle(here, given.sockets, given.idle)),
            ("rush", rush(here, given.rush)),
        ):
            here.new_jobs()
            print(json.dumps({name: asyncio.run(measure)}, indent=2), flush=True)


if __name__ == "__main__":
    main()
