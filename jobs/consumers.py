import asyncio
import contextlib
import logging
from typing import Any
from urllib.parse import parse_qs

from channels.auth import get_user
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.sessions.backends.base import SessionBase

from jobs.live import allowed
from jobs.tail import safely, tail_here

SIGNED_OUT, NOT_FOUND, TOO_TALKATIVE = 4401, 4404, 1008
MOST_MESSAGES, LONGEST_MESSAGE = 20, 1000
RECHECK = 60.0  # seconds

log = logging.getLogger(__name__)


class LiveConsumer(AsyncWebsocketConsumer):
    """A page that watches topics. It hears what changed, and has nothing to say itself."""

    async def connect(self) -> None:
        # Accept before refusing: a refused handshake looks like a broken network, and pages would try again for ever.
        await self.accept()
        self.heard, self.recheck = 0, None
        self.names = names_in(self.scope["query_string"])
        if refusal := await self.refusal():
            await self.close(refusal)
            return
        # Watch first, then show: what changes in between is sent again instead of lost.
        await tail_here().add(self, self.names)
        await self.show(await database_sync_to_async(current)(self.names))
        self.recheck = asyncio.create_task(self.check_again())

    async def refusal(self) -> int:
        """A close code, or 0. The session is read again each time: who signed out must not go on watching."""
        user = await get_user(fresh(self.scope))
        if not user.is_authenticated:
            return SIGNED_OUT
        return 0 if await database_sync_to_async(allowed)(user, self.names) else NOT_FOUND

    async def check_again(self) -> None:
        while True:
            await asyncio.sleep(RECHECK)
            try:
                refusal = await self.refusal()
            except Exception:  # a database that is away: ask again, the check must not end
                log.warning("Whether a page may go on watching could not be checked", exc_info=True)
                continue
            if refusal:
                await self.close(refusal)

    async def show(self, html: str) -> None:
        with contextlib.suppress(RuntimeError):  # closed in this moment
            await self.send(text_data=html)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        self.heard += 1
        if self.heard > MOST_MESSAGES or len(text_data or bytes_data or "") > LONGEST_MESSAGE:
            await self.close(TOO_TALKATIVE)

    async def disconnect(self, code: int) -> None:
        tail_here().remove(self)
        if self.recheck:
            self.recheck.cancel()


class Nowhere(AsyncWebsocketConsumer):
    """Any other address."""

    async def connect(self) -> None:
        await self.accept()
        await self.close(NOT_FOUND)


def names_in(query_string: bytes) -> list[str]:
    try:
        query = parse_qs(query_string.decode(errors="replace"), max_num_fields=100)
    except ValueError:
        return []
    return list(dict.fromkeys(query.get("t", [])))


def current(names: list[str]) -> str:
    return "\n".join(safely(name) or "" for name in names)


def fresh(scope: dict[str, Any]) -> dict[str, Any]:
    """The same session, read anew from its store."""
    session: SessionBase = scope["session"]
    return {**scope, "session": type(session._wrapped)(session.session_key)}  # type: ignore[attr-defined]
