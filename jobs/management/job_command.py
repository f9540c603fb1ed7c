"""What the commands that do work by a job share: they start it, wait for it, and say how it ended."""

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand

from jobs.errors import InvalidInput
from jobs.management.describe import describe_job
from jobs.management.progress_line import ProgressLine
from jobs.models import Job, QueuePause, State
from jobs.queue import worker_alive
from jobs.watch import see_through

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit codes


class BadInput(Exception):
    """`errors`: field → what is wrong with it."""

    def __init__(self, errors: dict[str, list[str]]) -> None:
        self.errors = errors
        super().__init__(errors)


class JobCommand(BaseCommand):
    """A command says which job it starts (`make_job`) and, for --json, what came of it (`describe`).

    Standard output gets one JSON document or the words for people, standard error the progress."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON document")
        parser.add_argument("--no-wait", action="store_true", help="leave the job to a worker and return at once")
        parser.add_argument("--team", help="name of the team that gets it (default: the user's, or the first)")
        parser.add_argument("--user", help="username of the owner (default: nobody)")

    def make_job(self, team: Any, owner: Any, options: dict[str, Any]) -> tuple[Job, Any]:
        """Start the job and return it with what it works on. Raises BadInput or InvalidInput."""
        raise NotImplementedError

    def describe(self, target: Any) -> dict[str, Any]:
        return {}

    def handle(self, *args: Any, **options: Any) -> None:
        self.as_json = options["as_json"]
        try:
            team, owner = self.people(options)
            job, target = self.make_job(team, owner, options)
        except (BadInput, InvalidInput) as refused:
            code = self.refuse(refused)
        else:
            code = self.hand_over(job, target) if options["no_wait"] else self.wait(job, target)
        if code:
            sys.exit(code)

    def people(self, options: dict[str, Any]) -> tuple[Any, Any]:
        team_model: Any = apps.get_model(settings.TEAM_MODEL)
        users = get_user_model()._default_manager
        owner: Any = users.filter(username=options["user"]).first() if options["user"] else None
        if options["user"] and owner is None:
            raise BadInput({"user": [f"There is no user “{options['user']}”."]})
        if not options["team"]:
            return (owner.team if owner else None) or team_model.default(), owner
        team = team_model.objects.filter(name=options["team"]).first()
        if team is None:
            names = ", ".join(team_model.objects.values_list("name", flat=True)[:8])
            raise BadInput({"team": [f"There is no team “{options['team']}”. There are: {names}."]})
        return team, owner

    def hand_over(self, job: Job, target: Any) -> int:
        if pause := QueuePause.objects.filter(queue=job.queue).first():
            self.stderr.write(f"{pause}. It may start when somebody resumes it: mistudio queue resume {job.queue}")
        elif not worker_alive(job.queue):
            self.stderr.write(
                f"No worker of the {job.queue} queue is running. Start one: mistudio worker --queue {job.queue}"
            )
        self.say(f"Job {job.pk} waits. Look at it: {job.command}", job, target)
        return DONE

    def wait(self, job: Job, target: Any) -> int:
        progress = ProgressLine(sys.stderr)
        try:
            job = see_through(job, progress)
        except KeyboardInterrupt:
            progress.end()
            self.stderr.write(f"Job {job.pk} goes on in its worker. Cancel it: mistudio jobs cancel {job.pk}")
            return INTERRUPTED
        progress.end()
        return self.tell_end(job, target)

    def tell_end(self, job: Job, target: Any) -> int:
        if job.state == State.SUCCEEDED:
            if target is not None:
                target.refresh_from_db()
            self.say(f"Done: {job} (job {job.pk}, {job.seconds or 0:.1f} s).", job, target)
            return DONE
        if job.state == State.PAUSED:
            self.say(
                f"Job {job.pk} is paused at {job.percent:.1f} %. Go on: mistudio jobs resume {job.pk}", job, target
            )
            return INTERRUPTED
        words = f"{job.error_message} {job.error_hint}".strip() or job.state
        self.stderr.write(f"Job {job.pk} {job.state}: {words}")
        self.say("", job, target)
        return FAILED

    def say(self, words: str, job: Job, target: Any) -> None:
        if self.as_json:
            about = self.describe(target) if target is not None else {}
            self.stdout.write(json.dumps({**about, "job": describe_job(job), "result": job.result}))
        elif words:
            self.stdout.write(words)

    def refuse(self, refused: BadInput | InvalidInput) -> int:
        if isinstance(refused, BadInput):
            errors = refused.errors
        else:
            errors = {refused.field or "input": [f"{refused.message} {refused.hint}".strip()]}
        for name, sentences in errors.items():
            self.stderr.write(f"{name.replace('__all__', 'input')}: {' '.join(sentences)}")
        if self.as_json:
            self.stdout.write(json.dumps({"errors": errors}))
        return BAD_INPUT
