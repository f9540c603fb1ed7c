"""Reads the events of all jobs for the pages of this web process, and shows them what changed.

One per event loop. It waits for its bell, looks every two seconds anyway, gathers for 30 ms, and renders each topic
once however many pages watch it or have just come. Pages that come are let in a few at a time, and each page takes its
frames at its own pace: neither a thousand that come at once nor one that does not read holds up others. It rests while
no page is open."""

import asyncio
import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.conf import settings
from django.db.models import Max, Min, Q
from django.utils import timezone

from jobs import live
from jobs.models import LiveEvent

if TYPE_CHECKING:
    from jobs.consumers import Page

POLL, GATHER, AGAIN = 2.0, 0.03, 2.0  # seconds
RECHECK, DOOR = 120.0, 25  # seconds after which pages are asked again whether they may watch, and how many at a time
LATE, MOST_GAPS = 10.0, 100
FAILED = 1011  # a close code on which pages come back

log = logging.getLogger(__name__)


class Reader:
    """Event ids are given before the commit: a higher one may be seen first. What is missing in between is looked for
    a while; most gaps stay empty, from transactions that were undone."""

    def __init__(self) -> None:
        newest = LiveEvent.objects.aggregate(newest=Max("pk"))["newest"] or 0
        self.high = max(0, newest - MOST_GAPS)
        self.gaps: dict[int, float] = {}  # id → since when it is missing

    def read(self) -> set[str]:
        rows = LiveEvent.objects.filter(Q(pk__gt=self.high) | Q(pk__in=list(self.gaps)))
        found = dict(rows.values_list("pk", "topic"))
        now, high = time.monotonic(), max(found, default=self.high)
        missing = dict.fromkeys(range(max(self.high + 1, high - MOST_GAPS), high), now)
        gaps = {key: at for key, at in (missing | self.gaps).items() if key not in found and now - at < LATE}
        self.high, self.gaps = max(high, self.high), gaps
        return set(found.values())


class Tail:
    def __init__(self) -> None:
        self.asked: dict[Page, None] = {}  # pages before the door, the first first
        self.pages: set[Page] = set()  # that were let in
        self.watchers: dict[str, set[Page]] = {}
        self.bell, self.lock = asyncio.Event(), asyncio.Lock()
        self.reader: Reader | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.due: dict[str, float] = {}  # topic → when it may be rendered
        self.rendered: dict[str, float] = {}

    # ---- pages come and go

    async def add(self, page: "Page") -> None:
        """It is closed if it may not watch, else shown all its topics, and from then on misses nothing."""
        self.ask(page)
        async with self.lock:
            if not self.tasks:
                self.reader = await database_sync_to_async(Reader)()
                running = [self.tail(), self.hear_bell(), self.ask_again()]
                running += [self.hear_redis()] if settings.REDIS_URL else []
                self.tasks = [asyncio.create_task(task) for task in running]

    def ask(self, *pages: "Page") -> None:
        self.asked |= dict.fromkeys(pages)
        self.bell.set()

    def next_asked(self) -> "list[Page]":
        """Those who come do not wait behind those who are asked again."""
        return sorted(self.asked, key=self.pages.__contains__)[:DOOR]

    async def ask_again(self) -> None:
        while True:
            await asyncio.sleep(RECHECK)
            self.ask(*self.pages)

    async def answer(self, refusals: "dict[Page, int | None]") -> None:
        for page in refusals.keys() & self.asked.keys():  # others went meanwhile
            del self.asked[page]
            code = refusals[page]
            if code is None and page not in self.pages:
                code = FAILED
            if code:
                await page.close(code)
            elif page not in self.pages:
                self.let_in(page)
        if self.asked:
            self.bell.set()

    def let_in(self, page: "Page") -> None:
        self.pages.add(page)
        soon = time.monotonic() + GATHER
        for name in page.names:
            self.watchers.setdefault(name, set()).add(page)
            self.expect(name, soon)

    def expect(self, name: str, at: float) -> None:
        self.due[name] = min(at, self.due.get(name, at))

    def remove(self, page: "Page") -> None:
        self.asked.pop(page, None)
        self.pages.discard(page)
        for name in page.names:
            pages = self.watchers.get(name, set())
            pages.discard(page)
            if not pages:
                for known in (self.watchers, self.due, self.rendered):
                    known.pop(name, None)
        if not self.pages and not self.asked:
            self.rest()

    def rest(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.tasks = []

    # ---- what wakes it

    async def hear_bell(self) -> None:
        loop = asyncio.get_running_loop()
        bell, path = live.hang_bell()
        try:
            while True:
                await loop.sock_recv(bell, 16)
                self.bell.set()
        finally:
            bell.close()
            path.unlink(missing_ok=True)

    async def hear_redis(self) -> None:
        layer = get_channel_layer()
        while True:
            try:
                channel = await layer.new_channel()
                await layer.group_add(live.GROUP, channel)
                while True:
                    await layer.receive(channel)
                    self.bell.set()
            except Exception as error:  # whatever a broken Redis may raise; polling goes on meanwhile
                log.warning("Redis does not bring wake-ups: %s", error)
                await asyncio.sleep(AGAIN)

    def until_due(self, most: float) -> float:
        """Seconds until a postponed topic may be rendered."""
        soonest = min(self.due.values(), default=math.inf) - time.monotonic()
        return max(0.0, min(most, soonest))

    async def wait(self) -> None:
        """Until the bell rings, a postponed topic is due, or two seconds have passed."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.bell.wait(), self.until_due(POLL))
        if self.bell.is_set():
            await asyncio.sleep(self.until_due(GATHER))
        self.bell.clear()

    # ---- its work

    async def tail(self) -> None:
        while True:
            await self.wait()
            try:
                await self.flush()
            except Exception:  # a database that is away must not silence the pages for ever
                log.exception("Live events are not shown")
                await asyncio.sleep(AGAIN)

    async def flush(self) -> None:
        names, refusals = await database_sync_to_async(self.look)(self.next_asked())
        await self.answer(refusals)
        now = time.monotonic()
        for name in names & self.watchers.keys():
            self.expect(name, self.rendered.get(name, 0) + interval(name))
        ready = [name for name, at in self.due.items() if at <= now]
        if ready:
            self.take(ready, now)
            self.show(await database_sync_to_async(render_all)(ready))

    def look(self, pages: "list[Page]") -> "tuple[set[str], dict[Page, int | None]]":
        assert self.reader is not None  # made before the task
        with live.together():
            return self.reader.read(), {page: refused(page) for page in pages}

    def take(self, names: list[str], now: float) -> None:
        for name in names:
            del self.due[name]
            self.rendered[name] = now

    def show(self, fragments: dict[str, str | None]) -> None:
        now = time.monotonic()
        for name, html in fragments.items():
            if name not in self.watchers:
                continue
            if html is None:
                self.expect(name, now + AGAIN)
                continue
            if (every := max(noun(name).old_after(html), interval(name))) < math.inf:
                self.expect(name, next_tick(now, every))
            for page in self.watchers[name] if html else ():
                page.show(name, html)


def noun(name: str) -> live.Topic:
    """Of "trainings.12"."""
    return live.topics()[name.partition(".")[0]]


def next_tick(now: float, every: float) -> float:
    """Half to one and a half intervals ahead, the same for all that tick as often: what they share is asked once."""
    return math.ceil(now / every + 0.5) * every


def interval(name: str) -> float:
    return max(noun(name).interval, noun(name).pace(name.partition(".")[2]))


TAILS: "WeakKeyDictionary[asyncio.AbstractEventLoop, Tail]" = WeakKeyDictionary()


def tail_here() -> Tail:
    return TAILS.setdefault(asyncio.get_running_loop(), Tail())


def pages_here() -> int:
    """Open pages of this process, asked from any thread."""
    return sum(len(tail.pages) for tail in list(TAILS.values()))


def lag_here() -> float:
    """Seconds since the oldest event that this process should have read and has not; 0 while nothing waits."""
    read = [tail.reader.high for tail in list(TAILS.values()) if tail.tasks and tail.reader]
    if not read:
        return 0.0
    oldest = LiveEvent.objects.filter(pk__gt=min(read)).aggregate(at=Min("at"))["at"]
    return max(0.0, (timezone.now() - oldest).total_seconds()) if oldest else 0.0


def refused(page: "Page") -> int | None:
    """A close code, or 0; None for a question that could not be answered."""
    try:
        return page.refusal()
    except Exception:
        log.warning("Whether a page may watch could not be looked up", exc_info=True)
        return None


def render_all(names: list[str]) -> dict[str, str | None]:
    """None for a topic that failed: it is tried again, and takes no other with it."""
    with live.together():
        return {name: safely(name) for name in names}


def safely(name: str) -> str | None:
    try:
        return live.render(name)
    except Exception:
        log.exception("Topic %s cannot be rendered", name)
        return None
