"""A limit on the bytes per second that come from the hub, shared by all processes of this machine.

MISTUDIO_DOWNLOAD_RATE says it, such as "10 MB/s". Each piece that came is booked in one small file: whoever books waits
for what was booked before.
"""

import fcntl
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.ml.disk import parse_size

if TYPE_CHECKING:
    import httpx2

VARIABLE = "MISTUDIO_DOWNLOAD_RATE"
SLOWEST = 50_000  # bytes/s; below it one piece would take longer than a wish to stop may wait
LONGEST = 120.0  # seconds; what is booked further ahead is of before a restart of the machine


def parse_rate(text: str) -> int | None:
    """Bytes per second; None for an empty text, no limit. Raises ValueError."""
    if not text.strip():
        return None
    wrong = "give a rate such as 10 MB/s or 800 kB/s, 50 kB/s or more, or nothing for no limit"
    try:
        rate = parse_size(re.sub(r"(/s|ps)\s*$", "", text, flags=re.IGNORECASE))
    except ValueError:
        raise ValueError(wrong) from None
    if rate < SLOWEST:
        raise ValueError(wrong)
    return rate


@dataclass(frozen=True)
class Pace:
    rate: float  # bytes per second
    ledger: Path  # until when, on the monotonic clock of this machine, all is booked

    def take(self, n: int) -> None:
        """Waits until `n` more bytes are due."""
        with self.ledger.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            booked, now = file.read(), time.monotonic()
            until = float(booked) if re.fullmatch(rb"\d+\.\d+", booked) else now
            end = (until if now < until < now + LONGEST else now) + n / self.rate
            file.truncate(0)
            file.write(b"%.6f" % end)
        time.sleep(max(0.0, end - now))


def limit() -> Pace | None:
    rate = parse_rate(os.environ.get(VARIABLE, ""))
    if rate is None:
        return None
    folder = Path(os.environ.get("MISTUDIO_DATA") or tempfile.gettempdir()) / "devices"
    folder.mkdir(parents=True, exist_ok=True)
    return Pace(rate, folder / f"{socket.gethostname()}.downloads")


def keep_pace() -> Pace | None:
    """From now on whatever this process reads from the hub, by whichever library, keeps to the limit."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    if (pace := limit()) is None:
        return None

    def paced_client() -> "httpx2.Client":
        client = default_client_factory()
        hooks: Any = client.event_hooks
        client.event_hooks = {**hooks, "response": [*hooks.get("response", ()), slow_down]}
        return client

    def slow_down(response: "httpx2.Response") -> None:
        response.stream = paced(response.stream, pace)

    set_client_factory(paced_client)
    return pace


def paced(stream: Any, pace: Pace) -> Any:
    import httpx2

    class Paced(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            for piece in stream:
                pace.take(len(piece))
                yield piece

        def close(self) -> None:
            stream.close()

    return Paced()
