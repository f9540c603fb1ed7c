"""What the process of a job is trusted with: passed in its environment alone, struck out of whatever it prints.

Only processes of the same user of this machine can read the environment of another."""

import os
from collections.abc import Collection
from pathlib import Path

from django.conf import settings
from django.utils.module_loading import import_string

from jobs.models import Job

VARIABLES = ("HF_TOKEN",)
SHORTEST = 8  # what is shorter is no secret, and would strike out ordinary words


def secrets_of(job: Job) -> dict[str, str]:
    """Of a kind that says HUB, what the domain knows for it; nothing for other kinds."""
    if not settings.JOB_SECRETS or not job.ability("HUB"):
        return {}
    found = import_string(settings.JOB_SECRETS)(job)
    return {name: value for name, value in found.items() if name in VARIABLES and value}


def hidden(text: str) -> str:
    """Without the secrets of this process."""
    for name in VARIABLES:
        secret = os.environ.get(name, "")
        if len(secret) >= SHORTEST:
            text = text.replace(secret, "***")
    return text


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
