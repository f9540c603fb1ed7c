"""Activation caches within their quota; what an interrupted eviction left on the disk."""

from collections.abc import Iterator
from datetime import time
from functools import partial

from django.conf import settings
from django.db.models import Sum

from jobs.context import Context
from jobs.folders import bytes_of
from jobs.ml.store import remove
from jobs.upkeep.task import Needless, Step, Task
from mistudio.models import ActivationCache, Team
from mistudio.models.activation_cache import least_used
from mistudio.models.artifact import InUse


def steps(ctx: Context) -> Iterator[Step]:
    for team in Team.objects.order_by("pk") if settings.CACHE_QUOTA_BYTES else ():
        yield from over_quota(team)
    for cache in ActivationCache.objects.filter(ready_at=None).exclude(evicted_at=None).select_related("job"):
        if cache.folder.is_dir() and not cache.busy_with():
            what = f"files of “{cache}” ({cache.pk}), which was evicted"
            yield Step(what, "folder removed", partial(finish, cache), bytes=bytes_of(cache.folder))


def over_quota(team: Team) -> Iterator[Step]:
    rows = ActivationCache.objects.of_team(team)
    over = (rows.aggregate(n=Sum("size_bytes"))["n"] or 0) - settings.CACHE_QUOTA_BYTES
    for cache in least_used(rows):
        if over <= 0:
            return
        over -= cache.size_bytes or 0
        used = cache.used_at or cache.ready_at
        what = f"“{cache}” ({cache.pk}) of {team}, last used {used:%Y-%m-%d}"
        yield Step(what, "cache evicted", partial(evict, cache), bytes=cache.size_bytes or 0)


def evict(cache: ActivationCache) -> str:
    cache.refresh_from_db()
    try:
        cache.evict()
    except InUse as used:
        raise Needless(f"it is used by {', '.join(used.users)}") from used
    return ""


def finish(cache: ActivationCache) -> str:
    cache.refresh_from_db()
    if not cache.evicted or cache.busy_with():
        raise Needless("it is made again")
    remove(cache.folder)
    return ""


task = Task(
    "Activation caches",
    "Evicts the least recently used caches of a team that is over its quota, if there is one. Never one that a job "
    "uses; each can be made again.",
    time(0, 40),
    steps,
    every="hourly",
)
