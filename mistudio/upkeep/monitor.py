"""What the samplers do themselves, for a host whose sampler is gone."""

from collections.abc import Iterator
from datetime import datetime, time
from functools import partial

from django.utils import timezone

from jobs.context import Context
from jobs.upkeep.task import Step, Task
from monitoring.history import overdue, tidy
from monitoring.models import Host


def steps(ctx: Context) -> Iterator[Step]:
    now = timezone.now()
    for host in Host.objects.order_by("name"):
        if n := overdue(host, now).count():
            yield Step(f"{n:,} rows of {host}", "row removed", partial(remove, host, now, ctx), n=n)


def remove(host: Host, now: datetime, ctx: Context) -> str:
    """In turns: each makes the coarser rows first, of as many as a statement can take."""
    left = overdue(host, now).count()
    while left:
        ctx.check()
        tidy(now)
        before, left = left, overdue(host, now).count()
        if left >= before:
            return f"{left:,} rows of {host} stay: their coarser rows cannot be made."
    return ""


task = Task(
    "Monitor",
    "Removes readings of machines that are older than they are kept, after their coarser rows are made. Samplers do so "
    "themselves while they run.",
    time(3, 30),
    steps,
)
