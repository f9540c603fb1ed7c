"""The site as a process of its own, and what it stands on taken away: pages that stay open get right by themselves."""

import asyncio
import contextlib
import shutil
import sqlite3
import subprocess
import time

import pytest
import websockets
from asgiref.sync import sync_to_async
from django.db import connection

from jobs import live, tail
from jobs.models import Job
from jobs.studio import answers
from tests.conftest import free_port, listens, require
from tests.jobs.conftest import WEB, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]


@pytest.fixture
def site(beside, tmp_path):
    def start(*arguments, **env):
        script = tmp_path / "web.py"
        script.write_text(WEB)
        beside(str(script), str(port := free_port()), *arguments, env=env, command=())
        until(lambda: answers(f"http://127.0.0.1:{port}/login/"))
        return f"127.0.0.1:{port}"

    return start


@pytest.fixture
def cookie(client_of, alice):
    return "; ".join(f"{name}={morsel.value}" for name, morsel in client_of(alice).cookies.items())


def connect(address, cookie, job):
    headers = {"Cookie": cookie, "Origin": f"http://{address}"}
    return websockets.connect(f"ws://{address}/live/?t=jobs.{job.pk}", additional_headers=headers)


def change(job, percent):
    Job.objects.filter(pk=job.pk).update(percent=percent)
    live.publish(f"jobs.{job.pk}")


async def shown(page, percent, seconds=20):
    """How long it took until the page had it."""
    start = time.monotonic()
    while f"{percent:.1f} %" not in await asyncio.wait_for(page.recv(), seconds):
        continue
    return time.monotonic() - start


async def test_while_the_database_is_locked_pages_come_and_stay_and_then_get_what_was_written(site, cookie, row):
    if connection.vendor != "sqlite":
        pytest.skip("other servers lock rows, not all of them")
    job = await sync_to_async(row)("paused", percent=1.0)
    address = await sync_to_async(site)()
    with contextlib.closing(sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None)) as other:
        async with connect(address, cookie, job) as page:
            await shown(page, 1.0)
            other.execute("BEGIN IMMEDIATE")
            start = time.monotonic()
            writing = asyncio.create_task(sync_to_async(change)(job, 50.0))
            async with connect(address, cookie, job) as late:
                assert await shown(late, 1.0) < 4, "who only reads does not wait"
            await asyncio.sleep(max(0, 5 - (time.monotonic() - start)))
            assert not writing.done()
            other.execute("COMMIT")
            assert await shown(page, 50.0) < 4
            await writing


class Redis:
    def __init__(self, folder):
        found = shutil.which("redis-server")
        require("redis", found is not None, "redis-server is not installed")
        self.port = free_port()
        self.command = [found, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        self.process = None

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        until(lambda: listens(self.port))

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait(10)


@pytest.mark.redis
async def test_without_redis_pages_of_other_hosts_are_late_and_with_it_again_they_are_not(
    site, cookie, row, tmp_path, settings, monkeypatch
):
    redis = Redis(tmp_path)
    url = f"redis://127.0.0.1:{redis.port}/0"
    layer = {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": {"hosts": [url]}}
    settings.REDIS_URL, settings.CHANNEL_LAYERS = url, {"default": layer}
    monkeypatch.setattr(live, "REDIS_REST", 0.0)
    job = await sync_to_async(row)("paused", percent=1.0)
    address = await sync_to_async(site)("deaf", REDIS_URL=url)
    percent, late = 1.0, tail.POLL + 4

    async def next_change():
        nonlocal percent
        percent += 1
        await sync_to_async(change)(job, percent)
        return await shown(page, percent)

    async def soon_again():
        """Subscribed anew, several changes in a row come long before the next look."""
        start = time.monotonic()
        while sum([await next_change() for _ in range(4)]) > tail.POLL:
            assert time.monotonic() - start < 40

    try:
        async with connect(address, cookie, job) as page:
            await shown(page, 1.0)
            assert await next_change() < late, "absent from the start"
            redis.start()
            await soon_again()
            redis.stop()
            assert await next_change() < late, "gone"
            redis.start()
            await soon_again()
    finally:
        redis.stop()
