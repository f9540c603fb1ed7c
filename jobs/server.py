"""The web server: daphne, with sockets that compress, hold little for a page that does not read, and end with it."""

from daphne.server import Server as Daphne  # isort: skip  # first: it chooses the reactor

import asyncio
import functools
import socket
import struct
import zlib
from typing import Any

from autobahn.websocket.compress import PerMessageDeflateOffer, PerMessageDeflateOfferAccept
from channels.routing import get_default_application
from daphne.ws_protocol import WebSocketProtocol

PING, PATIENCE = 20, 15  # seconds: a page is asked whether it is there, and is taken for gone without an answer
UNSENT = 2**16  # bytes that wait in this process for one page, and again in the kernel; beyond them nothing is sent
HEARD = 4096  # bytes of a message, unpacked: pages have nothing to say


@functools.lru_cache(maxsize=16)
def frame(text: str, window: int) -> bytes:
    """A whole text message as it is on the wire, made once for all pages that get it. `window`: see RFC 7692, of 2**n
    bytes; 0: not compressed. No message refers to an earlier one, so a socket needs no memory for those."""
    payload, first = text.encode(errors="replace"), 0x81
    if window:
        deflate = zlib.compressobj(wbits=-window)
        payload, first = (deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4], 0xC1
    if len(payload) < 126:
        return struct.pack("!BB", first, len(payload)) + payload
    if len(payload) < 2**16:
        return struct.pack("!BBH", first, 126, len(payload)) + payload
    return struct.pack("!BBQ", first, 127, len(payload)) + payload


def accept(offers: list[Any]) -> PerMessageDeflateOfferAccept | None:
    """Of deflate, if it is offered at all."""
    for offer in offers:
        if isinstance(offer, PerMessageDeflateOffer):
            offer.request_no_context_takeover = True  # so the answer promises it, and the page needs no memory either
            return PerMessageDeflateOfferAccept(offer, request_no_context_takeover=True)
    return None


class Socket(WebSocketProtocol):
    """Of one page. `room` is set while there is room for what is sent to it."""

    window = 0

    def connectionMade(self) -> None:
        super().connectionMade()
        self.room = asyncio.Event()
        self.room.set()
        self.transport.bufferSize = UNSENT
        self.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNSENT)
        self.unregisterProducer()  # the HTTP request's, whose connection it was
        self.registerProducer(self, streaming=True)

    def onOpen(self) -> None:
        super().onOpen()
        self.window = next((deflate.server_max_window_bits for deflate in self.websocket_extensions_in_use), 0)

    def onClose(self, *said: Any) -> None:
        self.room.set()  # who waits for it need not wait longer
        super().onClose(*said)

    def dropConnection(self, abort: bool = False) -> None:
        """What is still to be sent holds it up for a moment only: a page that does not read would never let it end."""
        super().dropConnection(abort)
        asyncio.get_running_loop().call_later(self.closeHandshakeTimeout, self.transport.abortConnection)

    def pauseProducing(self) -> None:
        self.room.clear()

    def resumeProducing(self) -> None:
        self.room.set()

    def stopProducing(self) -> None:
        self.room.set()

    def serverSend(self, content: str, binary: bool = False) -> None:
        if self.state == self.STATE_OPEN:
            self.transport.write(frame(content, self.window))

    def serverClose(self, code: int | None = None) -> None:
        if self.state == self.STATE_OPEN:
            self.sendCloseFrame(1000 if code is None else code)  # also with codes that only a server may say


class Server(Daphne):
    def __init__(self, listener: socket.socket) -> None:
        super().__init__(
            application=get_default_application(),
            endpoints=[f"fd:fileno={listener.fileno()}"],
            websocket_timeout=-1,  # pages may stay open for days
            ping_interval=PING,
            ping_timeout=PATIENCE,
            websocket_max_message_size=HEARD,
            websocket_max_frame_size=HEARD,
            server_name="miStudio",
            ready_callable=self.prepare,
        )

    def prepare(self) -> None:
        self.ws_factory.protocol = Socket
        self.ws_factory.setProtocolOptions(perMessageCompressionAccept=accept, allowNullOrigin=True)

    async def handle_reply(self, protocol: Any, message: dict[str, Any]) -> None:
        """Who sends to a page waits until that has room for more."""
        await super().handle_reply(protocol, message)
        if message["type"] == "websocket.send":
            await protocol.room.wait()
