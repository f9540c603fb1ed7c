import json
import sys
from argparse import ArgumentParser
from typing import Any

from jobs.errors import InvalidInput
from jobs.management.describe import describe_job
from jobs.management.job_command import DONE, JobCommand
from jobs.models import Job, State
from jobs.upkeep.schedules import newest, schedules, start, subject_of
from jobs.upkeep.task import find


class Command(JobCommand):
    done: list[dict[str, Any]]
    help = "Run one task of upkeep, or all that run by themselves, one after the other. Schedules stay as they are."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("task", nargs="?", help="one of --list; without it all that are enabled")
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
        parser.add_argument("--list", action="store_true", help="list the tasks with their schedules and last results")
        parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON document")

    def handle(self, *args: Any, **options: Any) -> None:
        self.as_json, self.done = options["as_json"], []
        if options["list"]:
            self.tell()
            return
        try:
            names = [options["task"]] if options["task"] else self.enabled()
            codes = [self.wait(start(name, dry_run=options["dry_run"]), None) for name in names]
        except InvalidInput as refused:
            sys.exit(self.refuse(refused))
        if self.as_json:
            self.stdout.write(json.dumps(self.done))
        if code := next((code for code in codes if code != DONE), DONE):
            sys.exit(code)

    def enabled(self) -> list[str]:
        return list(schedules().filter(enabled=True).values_list("task", flat=True))

    def say(self, words: str, job: Job, target: Any) -> None:
        """The report of each run as it ends; of --json all together at the end."""
        if self.as_json:
            self.done.append({"task": job.params["task"], "job": describe_job(job), "result": job.result})
        elif job.state == State.SUCCEEDED:
            lines = [f"{job}: {job.result['summary']}."]
            lines += [f"  {name}: {line}" for name in ("details", "kept", "wrong") for line in job.result[name]]
            self.stdout.write("\n".join(lines))

    def tell(self) -> None:
        jobs = newest()
        rows = [
            {
                "task": schedule.task,
                "says": find(schedule.task).says,
                "schedule": schedule.said if schedule.enabled else "off",
                "next": schedule.next_at.isoformat() if schedule.enabled else None,
                "last": describe_job(last) | {"result": last.result} if last else None,
            }
            for schedule in schedules()
            for last in [jobs.get(subject_of(schedule.task, False))]
        ]
        if self.as_json:
            self.stdout.write(json.dumps(rows))
            return
        for row in rows:
            last: Any = row["last"]
            came = (
                f"{last['state']} {last['finished_at'] or ''} {last['result'].get('summary', '')}"
                if last
                else "never run"
            )
            self.stdout.write(f"{row['task']:<12} {row['schedule']:<22} {came.strip()}\n{'':13}{row['says']}")
