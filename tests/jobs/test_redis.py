"""Two web processes and a worker that share a Redis, and nothing else but the database and the data folder."""

import asyncio
import json
import time

import pytest
import websockets
from asgiref.sync import sync_to_async

from jobs import live
from jobs.models import Job
from jobs.studio import answers
from tests.conftest import free_port
from tests.jobs.conftest import WEB, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.redis]


@pytest.fixture
def webs(beside, redis_url, tmp_path):
    """Two web processes that hear no datagrams."""
    script = tmp_path / "web.py"
    script.write_text(WEB)
    ports = [free_port(), free_port()]
    env = {"REDIS_URL": redis_url}
    started = [beside(str(script), str(port), "deaf", env=env, command=()) for port in ports]
    for port, process in zip(ports, started, strict=True):
        until(lambda port=port: answers(f"http://127.0.0.1:{port}/login/"))
        assert process.process.poll() is None
    return ports


async def test_every_page_of_every_web_process_gets_each_change_once_and_soon(
    webs, redis_url, client_of, alice, row, settings
):
    settings.REDIS_URL = redis_url
    settings.CHANNEL_LAYERS = {
        "default": {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": {"hosts": [redis_url]}}
    }
    job = await sync_to_async(row)("paused", title="shared")
    client = await sync_to_async(client_of)(alice)
    cookie = "; ".join(f"{name}={morsel.value}" for name, morsel in client.cookies.items())
    headers = {"Cookie": cookie, "Origin": "http://127.0.0.1"}
    sockets = [
        await websockets.connect(f"ws://127.0.0.1:{port}/live/?t=jobs.{job.pk}", additional_headers=headers)
        for port in (webs[0], webs[0], webs[1])
    ]
    for socket in sockets:
        assert "shared" in await asyncio.wait_for(socket.recv(), 10)
    await asyncio.sleep(1)  # until both are subscribed

    def change(n):
        Job.objects.filter(pk=job.pk).update(percent=n)
        live.publish(f"jobs.{job.pk}")

    delays = []
    for n in range(1, 9):
        start = time.monotonic()
        await sync_to_async(change)(float(n))
        for socket in sockets:
            assert f"{n}.0 %" in await asyncio.wait_for(socket.recv(), 5)
        delays.append(time.monotonic() - start)
    assert sorted(delays)[4] < 1.0, f"woken by Redis, not by the look every two seconds: {json.dumps(delays)}"
    for socket in sockets:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(socket.recv(), 0.3)  # no frame comes twice
        await socket.close()


def test_a_redis_that_is_away_holds_up_no_job(settings, row, caplog, monkeypatch):
    monkeypatch.setattr(live, "redis_rests_until", 0.0)
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [settings.REDIS_URL]},
        }
    }
    job = row("running")
    start = time.monotonic()
    assert job.move("succeeded")
    assert time.monotonic() - start < 5 and caplog.text.count("Redis does not carry wake-ups") == 1
    job.note("again")
    assert caplog.text.count("Redis does not carry wake-ups") == 1, "it is left alone for a while"
