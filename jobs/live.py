"""Tells open pages to look again. The only place that writes events for browsers.

A page declares what it watches in the address of its socket, /live/?t=jobs.12&t=home.3, and gets the whole current
HTML of each topic when it connects and whenever the topic changes. /live/fragments/?t=… is the same for polling.

The rows of LiveEvent are the truth; every web process reads them for its own pages (see `jobs.tail`), so nothing is
sent twice and nothing is lost. A datagram, or with REDIS_URL a message to the other hosts, only says "read now"."""

import contextlib
import functools
import logging
import math
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from django.conf import settings
from django.db import transaction
from django.utils.module_loading import import_string

from jobs.models.live_event import LiveEvent

if TYPE_CHECKING:
    from jobs.models import Job

MOST_TOPICS = 20  # of one page
GROUP = "live"  # of the channel layer: every web process is in it
REDIS_REST = 5.0  # seconds
WHILE_IT_WAITS = 5.0  # seconds
redis_rests_until = 0.0
P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)


def never(html: str) -> float:
    return math.inf


def at_each_interval(html: str) -> float:
    return 0.0


def while_it_waits(html: str) -> float:
    """Of a job: why it waits (`jobs/_waiting.html`) changes with workers, and with the jobs of others."""
    return WHILE_IT_WAITS if "data-waits" in html else math.inf


@dataclass(frozen=True)
class Topic:
    """Something pages watch, "trainings.12" for key "12": who may see it, and its whole current HTML."""

    visible: Callable[[Any, str], bool]  # user, key
    render: Callable[[str], str]  # key; empty when there is nothing to show
    of_job: Callable[["Job"], str | None] = lambda job: None  # the key to look at again when this job changes
    interval: float = 0.1  # seconds between two renderings
    pace: Callable[[str], float] = lambda key: 0.0  # seconds between them that this key asks for, if more
    # Seconds until what was rendered may be old without an event: then, while somebody watches, it is rendered again.
    old_after: Callable[[str], float] = never


@functools.cache
def topics() -> dict[str, Topic]:
    return {name: import_string(path) for name, path in settings.LIVE_TOPICS.items()}


def own_team(user: Any, key: str) -> bool:
    """`visible` of topics whose key is a team."""
    return user.team is not None and key == str(user.team.pk)


def team_of(job: "Job") -> str | None:
    """`of_job` of these; the site's own jobs are shown to no team."""
    return str(job.team_id) if job.team_id else None


def find(name: str) -> tuple[Topic, str] | None:
    """The topic and the key of "trainings.12"; None for a name that is no topic."""
    noun, _, key = name.partition(".")
    topic = topics().get(noun)
    return (topic, key) if topic else None


def allowed(user: Any, names: list[str]) -> bool:
    """May this person watch all of these? Too many, or none, is a no."""
    if not 0 < len(names) <= MOST_TOPICS or not user.is_authenticated:
        return False
    found = [find(name) for name in names]
    return all(pair is not None and pair[0].visible(user, pair[1]) for pair in found)


def render(name: str) -> str:
    found = find(name)
    return found[0].render(found[1]) if found else ""


asked: ContextVar[dict[Any, Any] | None] = ContextVar("asked", default=None)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around topics that are rendered, or asked for, at a time: they share what is asked for `once`."""
    token = asked.set({})
    try:
        yield
    finally:
        asked.reset(token)


def once(ask: Callable[P, T]) -> Callable[P, T]:
    """Of the same arguments one answer for all topics that are rendered together; elsewhere a new one each time."""

    @functools.wraps(ask)
    def answer(*args: P.args, **options: P.kwargs) -> T:
        known, key = asked.get(), (ask, args, *options.items())
        if known is None:
            return ask(*args, **options)
        if key not in known:
            known[key] = ask(*args, **options)
        return known[key]

    return answer


def publish(*names: str) -> None:
    """Part of the transaction that changes what the topics show: pages are told once it is committed, or never."""
    LiveEvent.objects.bulk_create([LiveEvent(topic=name) for name in names])
    transaction.on_commit(wake)


def publish_job(*jobs: "Job") -> None:
    """Every topic says itself whether it shows these jobs."""
    found = (f"{noun}.{key}" for job in jobs for noun, topic in topics().items() if (key := key_for(topic, job)))
    publish(*dict.fromkeys(found))


def key_for(topic: Topic, job: "Job") -> str | None:
    try:
        return topic.of_job(job)
    except Exception:
        log.exception("A topic cannot tell whether it shows job %s", job.pk)  # a page's fault must not stop the job
        return None


# ---- wake-up: each web process has a socket in a folder, and who publishes rings at all of them


def bells() -> Path:
    """Of this host: several may share the data folder, and a socket that another one made looks dead here."""
    return settings.MISTUDIO_DATA / "live" / socket.gethostname()


@contextlib.contextmanager
def short_path(folder: Path) -> Iterator[str]:
    """The address of a UNIX socket has room for 107 bytes, a data folder may be deeper: go through its descriptor."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def hang_bell() -> tuple[socket.socket, Path]:
    """A new socket to listen on. The caller closes it and unlinks its path."""
    bells().mkdir(parents=True, exist_ok=True)
    name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}.sock"
    bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with short_path(bells()) as folder:
        bell.bind(f"{folder}/{name}")
    return bell, bells() / name


def wake() -> None:
    """Ring everywhere. A bell that nobody hears is no error: web processes look every two seconds anyway."""
    try:
        ring()
    except OSError as error:
        log.debug("Nobody was woken: %s", error)
    if settings.REDIS_URL:
        wake_other_hosts()


def ring() -> None:
    if not bells().is_dir():
        return
    with short_path(bells()) as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        for name in os.listdir(folder):  # noqa: PTH208  names are what is needed
            try:
                sender.sendto(b"!", f"{folder}/{name}")
            except ConnectionRefusedError:  # its process was killed
                (bells() / name).unlink(missing_ok=True)
            except OSError:  # just closed, or its bell rings already
                continue


def wake_other_hosts() -> None:
    global redis_rests_until
    if time.monotonic() < redis_rests_until:
        return
    from asgiref.sync import async_to_sync
    from channels.layers import get_channel_layer

    try:
        async_to_sync(get_channel_layer().group_send)(GROUP, {"type": "wake"})
    except Exception as error:  # whatever a broken Redis may raise: the rows are written, the pages look soon
        log.warning("Redis does not carry wake-ups: %s", error)
        redis_rests_until = time.monotonic() + REDIS_REST  # a job must not wait for it at each step
