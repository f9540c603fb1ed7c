"""A page as light as it can be, so that hundreds of them leave a core to the site: a socket, and its frames."""

import asyncio
import base64
import functools
import os
import re
import struct
import time
import zlib
from urllib.parse import urlsplit

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


@functools.lru_cache(maxsize=64)
def read(payload: bytes, deflated: bool) -> tuple[int, int]:
    """The number that the fragment carries, or -1, and how long its HTML is in bytes."""
    html = zlib.decompressobj(-zlib.MAX_WBITS).decompress(payload + b"\0\0\xff\xff") if deflated else payload
    found = re.search(rb"number-(\d+)-", html)
    return int(found[1]) if found else -1, len(html)


class Page(asyncio.Protocol):
    """`frames`: when each came, the number that it carries, bytes of its HTML, its bytes on the wire."""

    def __init__(self, cookie: str, url: str, path: str) -> None:
        self.data, self.opened, self.closed = b"", False, asyncio.Event()
        self.frames: list[tuple[float, int, int, int]] = []
        host, key = urlsplit(url).netloc, base64.b64encode(os.urandom(16)).decode()
        self.hello = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: {url}\r\nCookie: {cookie}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.transport.write(self.hello.encode())

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set()

    def data_received(self, data: bytes) -> None:
        self.data += data
        if not self.opened:
            head, end, self.data = self.data.partition(b"\r\n\r\n")
            if not end:
                self.data = head
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self.transport.close()
                return
            self.opened = True
        while self.take():
            pass

    def take(self) -> bool:
        """One frame, once the whole of it is here."""
        data, start = self.data, 2
        if len(data) < 2:
            return False
        length = data[1] & 127
        if length > 125:
            start = 4 if length == 126 else 10
            if len(data) < start:
                return False
            length = struct.unpack("!H" if length == 126 else "!Q", data[2:start])[0]
        if len(data) < start + length:
            return False
        payload, self.data = data[start : start + length], data[start + length :]
        if data[0] & 15 == TEXT:
            self.frames.append((time.time(), *read(payload, bool(data[0] & 0x40)), start + length))
        elif data[0] & 15 == PING:
            self.transport.write(bytes([0x80 | PONG, 0x80 | length, 0, 0, 0, 0]) + payload)
        elif data[0] & 15 == CLOSE:
            self.transport.close()
        return True


async def open_page(cookie: str, url: str, path: str) -> Page:
    address, loop = urlsplit(url), asyncio.get_running_loop()
    make = functools.partial(Page, cookie, url, path)
    _, page = await loop.create_connection(make, address.hostname, address.port)
    return page
