"""What is behind the addresses of sockets, in plain ASGI: a consumer of Channels visits the thread of the database with
each message, where a thousand pages that come at once would queue before everybody's news."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

from django.conf import settings
from django.contrib.auth import get_user

from jobs.live import allowed
from jobs.tail import FAILED, tail_here

SIGNED_OUT, NOT_FOUND, TOO_TALKATIVE = 4401, 4404, 1008
MOST_MESSAGES, LONGEST_MESSAGE = 20, 1000

log = logging.getLogger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Page:
    """A page that watches topics. It hears what changed, and has nothing to say itself.

    What it was not sent yet is the newest fragment of each topic, however slowly it reads."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.session_key = scope["cookies"].get(settings.SESSION_COOKIE_NAME)
        self.names = names_in(scope["query_string"])
        self.send, self.news = send, asyncio.Event()
        self.shown: dict[str, str] = {}
        self.unsent: dict[str, str] = {}

    def refusal(self) -> int:
        """A close code, or 0. The session is read each time anew: who signed out must not go on watching."""
        session = import_module(settings.SESSION_ENGINE).SessionStore(self.session_key)
        asked: Any = SimpleNamespace(session=session)
        user = get_user(asked)
        if not user.is_authenticated:
            return SIGNED_OUT
        return 0 if allowed(user, self.names) else NOT_FOUND

    def show(self, name: str, html: str) -> None:
        if self.shown.get(name) != html:
            self.shown[name] = self.unsent[name] = html
            self.news.set()

    async def write(self) -> None:
        """A page to which nothing can be sent any more is closed, and comes back."""
        try:
            while True:
                await self.news.wait()
                self.news.clear()
                html = "\n".join(self.unsent.values())
                self.unsent.clear()
                await self.send({"type": "websocket.send", "text": html})  # until the page has room for more
        except Exception:
            log.exception("A page could not be sent its news")
            await self.close(FAILED)

    async def close(self, code: int) -> None:
        await self.send({"type": "websocket.close", "code": code})

    async def listen(self, receive: Receive) -> None:
        """Until the socket is closed."""
        heard = 0
        while (message := await receive())["type"] != "websocket.disconnect":
            heard += 1
            if heard > MOST_MESSAGES or len(message.get("text") or message.get("bytes") or "") > LONGEST_MESSAGE:
                await self.close(TOO_TALKATIVE)


async def live(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()  # that it wants to connect
    # Accept before refusing: a refused handshake looks like a broken network, and pages would try again for ever.
    await send({"type": "websocket.accept"})
    page, tail = Page(scope, send), tail_here()
    writing = asyncio.create_task(page.write())
    try:
        await tail.add(page)
        await page.listen(receive)
    finally:
        tail.remove(page)
        writing.cancel()


async def nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """Any other address."""
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": NOT_FOUND})
    while (await receive())["type"] != "websocket.disconnect":
        continue


def names_in(query_string: bytes) -> list[str]:
    try:
        query = parse_qs(query_string.decode(errors="replace"), max_num_fields=100)
    except ValueError:
        return []
    return list(dict.fromkeys(query.get("t", [])))
