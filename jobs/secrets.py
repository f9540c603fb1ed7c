"""What the process of a job is trusted with: passed in its environment alone, struck out of whatever it prints.

Only processes of the same user of this machine can read the environment of another."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from django.conf import settings
from django.utils.module_loading import import_string

if TYPE_CHECKING:
    from jobs.models import Job

VARIABLES = ("HF_TOKEN",)
ADDRESSES = ("DATABASE_URL", "REDIS_URL")
SHORTEST = 8  # what is shorter is no secret, and would strike out ordinary words


def secrets_of(job: "Job") -> dict[str, str]:
    """Of a kind that says HUB, what the domain knows for it; nothing for other kinds."""
    if not settings.JOB_SECRETS or not job.ability("HUB"):
        return {}
    found = import_string(settings.JOB_SECRETS)(job)
    return {name: value for name, value in found.items() if name in VARIABLES and value}


def hidden(text: str) -> str:
    """Without the secrets of this process."""
    for secret in own():
        if len(secret) >= SHORTEST:
            text = text.replace(secret, "***")
    return text


def own() -> Iterator[str]:
    """What this process was started with and no log may show."""
    yield from (os.environ.get(name, "") for name in VARIABLES)
    yield from (settings.SECRET_KEY, settings.METRICS_TOKEN)
    for name in ADDRESSES:
        person = os.environ.get(name, "").partition("://")[2].rpartition("@")[0]
        if ":" in person:
            yield f"{person}@"  # not the password alone: it may be a word that is no secret elsewhere


def known(given: dict[str, str]) -> set[str]:
    """All that the process of a job may know: what it was given, and what it inherited from here."""
    return {*given.values(), *(os.environ.get(name, "") for name in VARIABLES)}


def strike_out(path: Path, secrets: Collection[str]) -> None:
    """In place and of the same length: the process goes on appending to the file meanwhile."""
    wanted = [secret.encode() for secret in secrets if len(secret) >= SHORTEST]
    if not wanted or not path.exists():
        return
    text = path.read_bytes()
    with path.open("r+b") as file:
        for secret in wanted:
            at = text.find(secret)
            while at >= 0:
                file.seek(at)
                file.write(b"*" * len(secret))
                at = text.find(secret, at + len(secret))
