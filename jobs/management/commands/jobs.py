import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand

from jobs import queue
from jobs.errors import InvalidInput
from jobs.kinds import KINDS
from jobs.logs import log_path, read_on, read_tail
from jobs.management.describe import describe_job, usage_facts
from jobs.management.job_command import BAD_INPUT, DONE, FAILED, INTERRUPTED
from jobs.management.progress_line import ProgressLine
from jobs.models import Job, State
from jobs.order import put
from jobs.watch import see_through

ACTIONS: dict[str, tuple[Callable[[Job], bool], str]] = {
    "cancel": (queue.request_cancel, "End a job."),
    "pause": (queue.request_pause, "Let a running job save its state and rest."),
    "finish": (queue.request_finish, "End a running job early and keep what it has made."),
    "resume": (queue.resume, "Queue a paused job again."),
    "first": (partial(put, place="first"), "Let a waiting job start before all others of its queue."),
    "later": (partial(put, place="later"), "Let a waiting job start after all others of its queue."),
    "normal": (partial(put, place="normal"), "Let a waiting job start in its turn again."),
    "dismiss": (Job.dismiss, "Take a failure off the page of operations."),
}


class Command(BaseCommand):
    help = "List jobs, look at them, and cancel, pause, resume, retry or reorder them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="action", required=True)
        every = commands.add_parser("list", help="the newest jobs")
        every.add_argument("--state", choices=State.values)
        every.add_argument("--kind", choices=sorted(KINDS))
        every.add_argument("--limit", type=int, default=20)
        logs = commands.add_parser("logs", help="what a job printed")
        logs.add_argument("--follow", action="store_true", help="until it ends")
        retry = commands.add_parser("retry", help="start a finished job again")
        retry.add_argument("--suggested", action="store_true", help="with the changes that its error suggests")
        retry.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="with another parameter")
        single = [commands.add_parser(name, help=words) for name, (_, words) in ACTIONS.items()]
        single.append(commands.add_parser("wait", help="until it ends; runs it here when no worker is there"))
        single.append(commands.add_parser("show", help="everything about one job"))
        for command in (logs, retry, *single):
            command.add_argument("job_id", type=int)
        for command in (every, logs, retry, *single):
            command.add_argument("--json", action="store_true", dest="as_json", help="print one JSON document")

    def handle(self, *args: Any, **options: Any) -> None:
        self.as_json = options["as_json"]
        try:
            code = self.list(options) if options["action"] == "list" else self.one(options)
        except InvalidInput as refused:
            self.stderr.write(f"{refused.message} {refused.hint}".strip())
            code = BAD_INPUT
        except KeyboardInterrupt:
            code = INTERRUPTED
        if code:
            sys.exit(code)

    def say(self, document: Any, lines: list[str]) -> None:
        self.stdout.write(json.dumps(document) if self.as_json else "\n".join(lines))

    def list(self, options: dict[str, Any]) -> int:
        chosen = {name: options[name] for name in ("state", "kind") if options[name]}
        rows = list(Job.objects.filter(**chosen).order_by("-pk")[: max(0, options["limit"])])
        lines = [f"{job.pk:>6}  {job.shown_state:<10} {job.percent:5.1f} %  {job.kind:<14} {job}" for job in rows]
        self.say([describe_job(job) for job in rows], lines or ["There are no such jobs."])
        return DONE

    def one(self, options: dict[str, Any]) -> int:
        job = Job.objects.filter(pk=options["job_id"]).first()
        if job is None:
            raise InvalidInput(f"There is no job {options['job_id']}.", hint="See: mistudio jobs list")
        action = options["action"]
        if action in ACTIONS:
            return self.act(job, ACTIONS[action][0])
        return {"show": self.show, "logs": self.logs, "retry": self.retry, "wait": self.wait}[action](job, options)

    def act(self, job: Job, action: Callable[[Job], bool]) -> int:
        done = action(job)
        job.refresh_from_db()
        wish = f", {job.wish} requested" if job.wish else ""
        self.say(describe_job(job), [f"Job {job.pk} is {job.state}{wish}."])
        return DONE if done else FAILED

    def show(self, job: Job, options: dict[str, Any]) -> int:
        facts = describe_job(job, full=True)
        said = {name: value for name, value in facts.items() if name not in ("events", "usage")}
        said |= usage_facts(facts["usage"]) if job.attempt else {}
        lines = [f"{name:>12}: {value}" for name, value in said.items() if value not in (None, "")]
        events = [f"{e['at'][:19]}  {e['what']}  {e['detail'] or ''}".rstrip() for e in facts["events"]]
        self.say(facts, [*lines, *events])
        return DONE

    def logs(self, job: Job, options: dict[str, Any]) -> int:
        path = log_path(job)
        at = path.stat().st_size if path.exists() else 0
        text = read_tail(path)
        self.say({"id": job.pk, "log": text}, [text])
        while options["follow"] and not self.as_json and job.unfinished:
            time.sleep(0.5)
            job.refresh_from_db()
            more, at = read_on(path, at)
            self.stdout.write(more, ending="")
            self.stdout.flush()
        return DONE

    def retry(self, job: Job, options: dict[str, Any]) -> int:
        overrides = job.suggestion.get("overrides", {}) if options["suggested"] else {}
        again = queue.retry(job, overrides | dict(assignment(text) for text in options["set"]))
        self.say(describe_job(again), [f"Job {again.pk} is queued in place of job {job.pk}."])
        return DONE

    def wait(self, job: Job, options: dict[str, Any]) -> int:
        progress = ProgressLine(sys.stderr)
        try:
            job = see_through(job, progress)
        finally:
            progress.end()
        self.say(describe_job(job, full=True), [f"Job {job.pk} {job.state}. {job.error_message}".strip()])
        return DONE if job.state == State.SUCCEEDED else INTERRUPTED if job.state == State.PAUSED else FAILED


def assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        if not equals:
            raise InvalidInput(f"--set {text}: give NAME=VALUE.") from None
        return name, value
