"""Keeps readings: as they were taken for an hour, then as ever coarser rows, until they are deleted.

A coarser row is made once from the finer rows of a complete interval, in one statement. A process that is killed in
between has written it or not: the next one goes on after the newest row."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db.models import Max, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone

from monitoring.models import Host, Sample
from monitoring.reading import KEPT, Values, rounded, series_of

READING, *COARSER = KEPT
MOST_ROLLED, MOST_DELETED = 2000, 500  # rows at a time
AHEAD = timedelta(seconds=10)  # of the clock here: a reading of a later time was taken while a clock was wrong


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def floor(at: datetime, resolution: int) -> datetime:
    """The start of the interval in which `at` lies."""
    return moment(at.timestamp() // resolution * resolution)


def store(samples: Iterable[Sample]) -> None:
    """In one statement. What was there of the same interval is replaced."""
    Sample.objects.bulk_create(
        samples,
        update_conflicts=True,
        unique_fields=["host", "resolution", "at"],
        update_fields=["n", "mean", "peak"],
    )


def record(host: Host, readings: Iterable[tuple[datetime, Values]]) -> None:
    newest = {floor(at, READING): values for at, values in readings}  # a moment may come twice: the clock was set back
    store([Sample(host=host, resolution=READING, at=at, mean=values) for at, values in newest.items()])


# ---- coarser rows


def roll_up(host: Host, until: datetime) -> dict[int, datetime]:
    """Make the coarser rows of all intervals that ended by `until`. Returns by resolution up to when its rows are part
    of coarser ones."""
    rolled = {}
    for fine, coarse in itertools.pairwise(KEPT):
        rolled[fine] = until = roll_up_one(host, fine, coarse, until)
    return rolled


def roll_up_one(host: Host, fine: int, coarse: int, until: datetime) -> datetime:
    until = floor(until, coarse)
    newest = host.samples.filter(resolution=coarse, at__lt=until).aggregate(at=Max("at"))["at"]
    rows = host.samples.filter(resolution=fine, at__lt=until)
    if newest:
        rows = rows.filter(at__gte=newest + timedelta(seconds=coarse))
    found = list(rows.order_by("at")[:MOST_ROLLED])
    if len(found) == MOST_ROLLED:  # the last interval may go on: the next call makes it
        until = floor(found[-1].at, coarse)
        found = [row for row in found if row.at < until]
    groups = itertools.groupby(found, lambda row: floor(row.at, coarse))
    store([merged(host, coarse, at, list(group)) for at, group in groups])
    return until


def merged(host: Host, resolution: int, at: datetime, rows: Sequence[Sample]) -> Sample:
    """Rows count by their readings."""
    sums: Values = {}
    counts: dict[str, int] = {}
    peak: Values = {}
    for row in rows:
        for name, value in row.mean.items():
            series = series_of(name)
            if series and series.coarsest >= resolution:
                sums[name] = sums.get(name, 0) + row.n * value
                counts[name] = counts.get(name, 0) + row.n
                peak[name] = max(peak.get(name, value), (row.peak or row.mean)[name])
    mean = {name: rounded(name, total / counts[name]) for name, total in sums.items()}
    return Sample(host=host, resolution=resolution, at=at, n=sum(row.n for row in rows), mean=mean, peak=peak)


# ---- the end of rows


def tidy(now: datetime) -> None:
    """Delete what is older than it is kept, a bounded number of rows at a time, and hosts of which nothing is left.

    A host that is gone left intervals that nobody rolled up: that is done here, long after its last reading."""
    for host in Host.objects.all():
        rolled = roll_up(host, now - timedelta(seconds=KEPT[READING]))
        for resolution, kept in KEPT.items():
            before = min(now - timedelta(seconds=kept), rolled.get(resolution, now))
            old = host.samples.filter(resolution=resolution, at__lt=before).order_by("at")
            doomed = list(old.values_list("pk", flat=True)[:MOST_DELETED])
            Sample.objects.filter(pk__in=doomed).delete()
            if doomed and not host.samples.exists():
                host.delete()
                break


def overdue(host: Host, now: datetime) -> QuerySet[Sample]:
    """The rows that are older than they are kept."""
    old = Q()
    for resolution, kept in KEPT.items():
        old |= Q(resolution=resolution, at__lt=now - timedelta(seconds=kept))
    return host.samples.filter(old)


# ---- looking back


@dataclass(frozen=True)
class Interval:
    at: datetime
    seconds: int
    mean: Values
    peak: Values


def resolution_for(since: datetime, until: datetime, points: int, now: datetime) -> int:
    """The coarsest that gives so many points, of those that reach back so far; else the finest of these."""
    reaching = [one for one, kept in KEPT.items() if now - since <= timedelta(seconds=kept)] or [max(KEPT)]
    enough = [one for one in reaching if one * points <= (until - since).total_seconds()]
    return max(enough, default=min(reaching))


def newest(now: datetime) -> dict[int, Sample]:
    """Of each host its last reading, or what is left of it; none of a host without. In one query."""
    of_host = Sample.objects.filter(host=OuterRef("pk"), at__lte=now + AHEAD)
    last = {f"of_{one}": Subquery(of_host.filter(resolution=one).order_by("-at").values("pk")[:1]) for one in KEPT}
    found = Host.objects.annotate(newest=Coalesce(*last.values())).values("newest")
    return {sample.host_id: sample for sample in Sample.objects.filter(pk__in=found).select_related("host")}


def history(host: Host, since: datetime, until: datetime, points: int = 300) -> list[Interval]:
    """About so many intervals, oldest first, in one query. What is not yet part of a row as coarse as the others
    follows in finer ones."""
    resolution = resolution_for(since, until, points, timezone.now())
    wanted = Q(resolution=resolution)
    for fine, coarse in itertools.pairwise(one for one in KEPT if one <= resolution):
        wanted |= Q(resolution=fine, at__gte=floor(until, coarse) - timedelta(seconds=coarse))
    rows = host.samples.filter(wanted, at__gte=since, at__lte=until).order_by("-resolution", "at")
    found: list[Interval] = []
    for row in rows:
        if not found or row.at >= found[-1].at + timedelta(seconds=found[-1].seconds):
            found.append(Interval(row.at, row.resolution, row.mean, row.peak or row.mean))
    return found
