"""Sessions of people who did not come back."""

from collections.abc import Iterator
from datetime import time

from django.contrib.sessions.models import Session
from django.utils import timezone

from jobs.context import Context
from jobs.upkeep.task import Step, Task


def steps(ctx: Context) -> Iterator[Step]:
    expired = Session.objects.filter(expire_date__lt=timezone.now())

    def remove() -> str:
        expired.delete()
        return ""

    if n := expired.count():
        yield Step(f"{n:,} expired sessions", "session removed", remove, n=n)


task = Task("Sessions", "Removes the sessions of people that have expired.", time(3, 20), steps)
