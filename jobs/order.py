"""In which order the jobs of a queue start: the urgent first, then users in turn, then who came first."""

import heapq
import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, NamedTuple

from django.db import transaction
from django.db.models import Count, Max, Min
from django.utils import timezone

from jobs.errors import InvalidInput
from jobs.live import once
from jobs.models import Job, State

REMEMBERED = timedelta(days=1)  # who was served longer ago waits as long as who never was
PLACES = {"first": "to run first", "later": "to run later", "normal": "to run in its turn"}


class Waiting(NamedTuple):
    pk: int
    team: int | None
    owner: int | None
    priority: int
    queued_at: datetime


def in_order(queue: str) -> Iterator[Waiting]:
    """The jobs that wait, the next one first; the others as they will follow if nothing comes or ends meanwhile."""
    of_queue = Job.objects.filter(queue=queue).order_by()
    rows = of_queue.filter(state=State.QUEUED).order_by("-priority", "queued_at", "pk")
    waiting = [Waiting(*row) for row in rows.values_list(*Waiting._fields)]
    if not waiting:
        return iter(())
    running: Any = of_queue.filter(state=State.RUNNING).values_list("owner")
    served: Any = of_queue.filter(started_at__gt=timezone.now() - REMEMBERED).values_list("owner")
    return turns(waiting, dict(running.annotate(n=Count("pk"))), dict(served.annotate(at=Max("started_at"))))


@once
def line(queue: str) -> list[Waiting]:
    """All of them."""
    return list(in_order(queue))


def turns(
    waiting: Iterable[Waiting], running: dict[int | None, int], served: dict[int | None, datetime]
) -> Iterator[Waiting]:
    """`waiting` by priority, oldest first. Of each priority the next is always of the owner with the fewest jobs
    running; of several the one who was served longest ago. What comes out counts as running from then on."""
    share = Counter(running)
    # Who is served here is served after all who ever were.
    last: dict[int | None, tuple[float, int]] = {owner: (at.timestamp(), 0) for owner, at in served.items()}
    now = itertools.count()
    for _, urgent in itertools.groupby(waiting, attrgetter("priority")):
        lines: dict[int | None, deque[Waiting]] = defaultdict(deque)
        for job in urgent:
            lines[job.owner].append(job)

        def claim_of(line: deque[Waiting]) -> tuple[Any, ...]:
            job = line[0]
            return share[job.owner], last.get(job.owner, (0.0, 0)), job.queued_at, job.pk, line

        heads = [claim_of(line) for line in lines.values()]
        heapq.heapify(heads)
        while heads:
            line = heapq.heappop(heads)[-1]
            job = line.popleft()
            yield job
            share[job.owner] += 1
            last[job.owner] = (float("inf"), next(now))
            if line:
                heapq.heappush(heads, claim_of(line))


def put(job: Job, place: str, by: str = "") -> bool:
    """Let a waiting job run "first", "later" than all others or in its "normal" turn. False when it does not wait any
    more. Raises InvalidInput."""
    if place not in PLACES:
        raise InvalidInput(f"There is no place “{place}”.", hint=f"Give {', '.join(PLACES)}.")
    others = Job.objects.filter(state=State.QUEUED, queue=job.queue).exclude(pk=job.pk)
    ends = others.aggregate(top=Max("priority", default=0), low=Min("priority", default=0))
    priority = {"first": max(0, ends["top"]) + 1, "later": min(0, ends["low"]) - 1, "normal": 0}[place]
    with transaction.atomic():
        if not Job.objects.filter(pk=job.pk, state=State.QUEUED).update(priority=priority):
            return False
        job.priority = priority
        job.note(f"asked {PLACES[place]}", **({"by": by} if by else {}))
    return True
