"""Reads the events of all jobs for the pages of this web process, and sends them what changed.

One per event loop. It waits for its bell, looks every two seconds anyway, gathers for 30 ms, renders each topic once
however many pages watch it, and sends each page one frame. It rests while no page is open."""

import asyncio
import contextlib
import logging
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
    from jobs.consumers import LiveConsumer

POLL, GATHER, AGAIN = 2.0, 0.03, 2.0  # seconds
LATE, MOST_GAPS = 10.0, 100

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
        self.watchers: dict[str, set[LiveConsumer]] = {}
        self.bell, self.lock = asyncio.Event(), asyncio.Lock()
        self.reader: Reader | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.due: dict[str, float] = {}  # topic → when it may be rendered
        self.rendered: dict[str, float] = {}
        self.shown: dict[str, str] = {}  # topic → what all its pages were sent last

    # ---- pages come and go

    async def add(self, page: "LiveConsumer", topics: list[str]) -> None:
        """From the return on the page misses nothing; what is true now it must be shown by the caller."""
        for topic in topics:
            self.watchers.setdefault(topic, set()).add(page)
            self.shown.pop(topic, None)  # this page was not sent it
            if noun(topic).ticks:  # what is true now the page is shown by itself
                self.due.setdefault(topic, time.monotonic() + interval(topic))
                self.bell.set()  # to wait no longer than for this
        async with self.lock:
            if not self.tasks:
                self.reader = await database_sync_to_async(Reader)()
                running = [self.tail(), self.hear_bell()] + ([self.hear_redis()] if settings.REDIS_URL else [])
                self.tasks = [asyncio.create_task(task) for task in running]

    def remove(self, page: "LiveConsumer") -> None:
        for topic in [topic for topic, pages in self.watchers.items() if page in pages]:
            self.watchers[topic].discard(page)
            if not self.watchers[topic]:
                for known in (self.watchers, self.shown, self.due, self.rendered):
                    known.pop(topic, None)
        if not self.watchers:
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

    async def wait(self) -> None:
        """Until the bell rings, a postponed topic is due, or two seconds have passed."""
        soonest = min(self.due.values(), default=time.monotonic() + POLL) - time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.bell.wait(), max(0.0, min(POLL, soonest)))
        if self.bell.is_set():
            await asyncio.sleep(GATHER)
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
        assert self.reader is not None  # made before the task
        names = await database_sync_to_async(self.reader.read)()
        now = time.monotonic()
        for name in names & self.watchers.keys():
            self.due.setdefault(name, self.rendered.get(name, 0) + interval(name))
        ready = [name for name, at in self.due.items() if at <= now]
        if ready:
            self.take(ready, now)
            await self.send(await database_sync_to_async(render_all)(ready))

    def take(self, names: list[str], now: float) -> None:
        for name in names:
            del self.due[name]
            self.rendered[name] = now
            if noun(name).ticks:
                self.due[name] = now + interval(name)

    async def send(self, fragments: dict[str, str | None]) -> None:
        changed = {}
        for name, html in fragments.items():
            if name not in self.watchers:  # the last page left meanwhile
                continue
            if html is None:
                self.due[name] = time.monotonic() + AGAIN
            elif html and self.shown.get(name) != html:
                changed[name] = self.shown[name] = html
        pages = {page for name in changed for page in self.watchers[name]}
        for page in pages:
            await page.show("\n".join(html for name, html in changed.items() if page in self.watchers.get(name, ())))


def noun(name: str) -> live.Topic:
    """Of "trainings.12"."""
    return live.topics()[name.partition(".")[0]]


def interval(name: str) -> float:
    return max(noun(name).interval, noun(name).pace(name.partition(".")[2]))


TAILS: "WeakKeyDictionary[asyncio.AbstractEventLoop, Tail]" = WeakKeyDictionary()


def tail_here() -> Tail:
    return TAILS.setdefault(asyncio.get_running_loop(), Tail())


def pages_here() -> int:
    """Open pages of this process, asked from any thread."""
    watched = [set(pages) for tail in list(TAILS.values()) for pages in list(tail.watchers.values())]
    return len(set().union(*watched))


def lag_here() -> float:
    """Seconds since the oldest event that this process should have read and has not; 0 while nothing waits."""
    read = [tail.reader.high for tail in list(TAILS.values()) if tail.tasks and tail.reader]
    if not read:
        return 0.0
    oldest = LiveEvent.objects.filter(pk__gt=min(read)).aggregate(at=Min("at"))["at"]
    return max(0.0, (timezone.now() - oldest).total_seconds()) if oldest else 0.0


def render_all(names: list[str]) -> dict[str, str | None]:
    """None for a topic that failed: it is tried again, and takes no other with it."""
    return {name: safely(name) for name in names}


def safely(name: str) -> str | None:
    try:
        return live.render(name)
    except Exception:
        log.exception("Topic %s cannot be rendered", name)
        return None
