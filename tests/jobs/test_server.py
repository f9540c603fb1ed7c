"""The site as a process of its own, before it sockets that are slow, dead, talkative, or offer compression."""

import asyncio
import random
import select
import socket
import time

import pytest
import websockets
from asgiref.sync import sync_to_async
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from jobs import live, server
from jobs.consumers import TOO_TALKATIVE
from jobs.models import Job
from jobs.server import frame
from jobs.studio import answers
from tests.conftest import free_port
from tests.jobs.conftest import WEB, until


@pytest.fixture
def site(beside, tmp_path, transactional_db, request):
    """With a parameter: the seconds that it waits for a sign of life."""
    script = tmp_path / "web.py"
    patience = getattr(request, "param", server.PATIENCE)
    first = f"from jobs import server, tail\nserver.PING, server.PATIENCE, tail.RECHECK = 1, {patience}, 1\n"
    script.write_text(f"import django\ndjango.setup()\n{first}{WEB}")
    process = beside(str(script), str(port := free_port()), command=())
    until(lambda: answers(f"http://127.0.0.1:{port}/login/"))
    process.address = f"127.0.0.1:{port}"
    return process


def cookie_of(client):
    return "; ".join(f"{name}={morsel.value}" for name, morsel in client.cookies.items())


@pytest.fixture
def cookie(client_of, alice):
    return cookie_of(client_of(alice))


def connect(site, cookie, job, **options):
    headers = {"Cookie": cookie, "Origin": f"http://{site.address}"}
    address = f"ws://{site.address}/live/?t=jobs.{job.pk}"
    return websockets.connect(address, additional_headers=headers, max_size=None, **options)


def change(job, **fields):
    Job.objects.filter(pk=job.pk).update(**fields)
    live.publish(f"jobs.{job.pk}")


async def soon(page, what, seconds=20):
    """Frames of this page until one has it."""
    start = time.monotonic()
    while what not in await asyncio.wait_for(page.recv(), seconds):
        assert time.monotonic() - start < seconds


class Rude:
    """A page that takes the first fragment, and then neither reads nor answers."""

    def __init__(self, site, cookie, job):
        host, _, port = site.address.partition(":")
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(20)
        self.socket.connect((host, int(port)))
        self.socket.sendall(
            f"GET /live/?t=jobs.{job.pk} HTTP/1.1\r\nHost: {site.address}\r\nOrigin: http://{site.address}\r\n"
            f"Cookie: {cookie}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n".encode()
        )
        while b"</section>" not in self.socket.recv(65536):
            continue

    def say_goodbye(self):
        """A frame that closes, masked with zeros as pages have to mask theirs."""
        self.socket.sendall(bytes([0x88, 0x82, 0, 0, 0, 0]) + (1000).to_bytes(2))

    def let_go(self, seconds):
        """Whether the connection is reset in that time, without reading from it."""
        poll = select.poll()
        poll.register(self.socket, 0)
        return bool(poll.poll(1000 * seconds))

    def read_until(self, end):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
        read = b""
        while end not in read and (data := self.socket.recv(65536)):
            read += data
        return read


OFFERS = {
    "none": None,
    "as browsers do": [ClientPerMessageDeflateFactory(client_max_window_bits=True)],
    "a small window": [ClientPerMessageDeflateFactory(server_max_window_bits=9, client_max_window_bits=True)],
}


async def test_what_arrives_is_right_with_and_without_compression_and_who_talks_is_closed(site, cookie, row):
    job = await sync_to_async(row)("paused", title="größer " * 20)
    lengths = {}
    for name, offer in OFFERS.items():
        async with connect(site, cookie, job, compression=None, extensions=offer) as page:
            agreed = page.response.headers.get("Sec-WebSocket-Extensions", "")
            assert agreed.startswith("permessage-deflate") == bool(offer)
            assert ("server_no_context_takeover" in agreed) == ("client_no_context_takeover" in agreed) == bool(offer)
            for percent in (11.0, 22.0):
                await sync_to_async(change)(job, percent=percent)
                await soon(page, f"{percent} %")
            lengths[name] = agreed
    assert "server_max_window_bits=9" in lengths["a small window"]
    async with connect(site, cookie, job) as page:
        await page.send("x" * 2000)
        with pytest.raises(websockets.ConnectionClosed):
            while True:
                await asyncio.wait_for(page.recv(), 10)
        assert page.close_code == TOO_TALKATIVE


async def test_a_page_that_does_not_read_slows_no_other_and_has_the_newest_state_when_it_reads(site, cookie, row):
    job = await sync_to_async(row)("paused")
    rude = await sync_to_async(Rude)(site, cookie, job)
    delays, size, changes = [], 200_000, 15
    async with connect(site, cookie, job) as page:
        await page.recv()
        for n in range(changes):
            start = time.monotonic()
            await sync_to_async(change)(job, title=f"number {n}, {'x' * size}")
            await soon(page, f"number {n},")
            delays.append(time.monotonic() - start)
    read = await sync_to_async(rude.read_until)(f"number {changes - 1},".encode())
    assert sorted(delays)[len(delays) // 2] < 1, delays
    assert f"number {changes - 1},".encode() in read
    assert len(read) < changes * size / 2, "nothing was kept for it but a few old states and the newest"


@pytest.mark.slow
@pytest.mark.parametrize("site", [2], indirect=True)
def test_a_page_that_is_gone_without_a_word_is_let_go(site, cookie, row):
    rude = Rude(site, cookie, row("paused"))
    start = time.monotonic()
    with pytest.raises(ConnectionResetError):
        rude.read_until(b"what never comes")
    assert 2 < time.monotonic() - start < 12


@pytest.mark.slow
def test_a_page_that_ends_while_it_does_not_read_is_let_go_at_once(site, cookie, client_of, bob, row):
    job, client = row("failed"), client_of(bob)
    closes, signs_out = Rude(site, cookie, job), Rude(site, cookie_of(client), job)
    for n in range(3):  # more than the kernel takes for them
        change(job, error_message=f"number {n}, {random.randbytes(2_000_000).hex()}")
        assert not closes.let_go(0.3) and not signs_out.let_go(0)
    closes.say_goodbye()
    client.logout()
    assert closes.let_go(5) and signs_out.let_go(5)


# ---- frames


@pytest.mark.parametrize("window", [0, 9, 12, 15])
@pytest.mark.parametrize("length", [1, 125, 126, 65_535, 65_536, 200_000])
def test_a_frame_is_read_by_others_as_it_was_meant(length, window):
    text = "".join(chr(32 + n * n % 90) for n in range(length))
    reader = StreamReader()
    reader.feed_data(frame(text, window))
    unpack = [PerMessageDeflate(True, True, window, 15)] if window else []
    parsing = Frame.parse(reader.read_exact, mask=False, extensions=unpack)
    with pytest.raises(StopIteration) as read:
        next(parsing)
    assert read.value.value == Frame(Opcode.TEXT, text.encode()) and not reader.buffer
    assert not window or length < 1000 or len(frame(text, window)) < length
