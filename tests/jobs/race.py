"""Several processes want the same jobs at the same moment. Prints who got what, as JSON. See test_races.py."""

import json
import multiprocessing
import sys
from typing import Any

import django

django.setup()

from django.apps import apps  # noqa: E402
from django.conf import settings  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connections  # noqa: E402

from jobs.models import Job, JobEvent, State  # noqa: E402
from jobs.order import in_order  # noqa: E402
from jobs.queue import submit  # noqa: E402
from jobs.supervise import claim, claim_next  # noqa: E402
from mistudio.models import Team, User  # noqa: E402

JOBS, RUNNERS = 12, 4


def attempt(what: str, key: int, team: int) -> int | None:
    if what == "claim":
        return key if claim(key) else None
    if what == "next":
        return job.pk if (job := claim_next("cpu")) else None
    if what == "move":
        return key if Job(pk=key, state=State.RUNNING, attempt=1, team_id=team).move(State.SUCCEEDED) else None
    return submit("sleepy", {}, team=Team(pk=team), owner=None, subject=f"race:{key}").pk


def run(what: str, keys: list[int], team: int, barrier: Any, answers: Any) -> None:
    barrier.wait()
    got = [attempt(what, key, team) for key in keys]
    answers.put([key for key in got if key is not None])


def race(what: str) -> dict[str, Any]:
    team = Team.default()
    state = State.RUNNING if what == "move" else State.QUEUED
    known = {"team": team, "kind": "sleepy", "queue": "cpu", "state": state, "attempt": int(what == "move")}
    rows = [Job(owner=owner, **known) for owner in OWNERS for _ in range(JOBS // len(OWNERS))]
    keys = [row.pk for row in Job.objects.bulk_create(rows)]
    order = [waiting.pk for waiting in in_order("cpu")]
    connections.close_all()  # each process opens its own
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(RUNNERS), context.Queue()
    runners = [context.Process(target=run, args=(what, keys, team.pk, barrier, answers)) for _ in range(RUNNERS)]
    for runner in runners:
        runner.start()
    got = [answers.get(timeout=240) for _ in runners]
    for runner in runners:
        runner.join()
    events = JobEvent.objects.filter(job__in=keys, detail__state__in=["running", "succeeded"])
    made = Job.objects.filter(subject__startswith="race:").count()
    return {"keys": keys, "got": got, "order": order, "events": [event.job_id for event in events], "made": made}


# The tables of the models as they are now: to come there by all migrations takes longer than the races.
settings.MIGRATION_MODULES = dict.fromkeys(app.label for app in apps.get_app_configs())
call_command("migrate", verbosity=0, skip_checks=True, run_syncdb=True)
OWNERS = [None, *[User.objects.create(username=name) for name in ("alice", "bob")]]
sys.stdout.write(json.dumps({what: race(what) for what in ("claim", "move", "next", "submit")}))
