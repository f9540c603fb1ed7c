import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from jobs.reap import forget, reap, resend


class Command(BaseCommand):
    help = "Queue again, or fail, the jobs whose worker is lost. Workers do this themselves every few seconds."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def handle(self, *args: Any, **options: Any) -> None:
        reaped = [{"job": job.pk, "why": ending.why, "state": ending.to} for job, ending in reap()]
        sent = resend()
        forget()
        if options["json"]:
            self.stdout.write(json.dumps({"reaped": reaped, "sent_again": sent}))
            return
        for line in reaped:
            self.stdout.write(f"job {line['job']}: {line['why']}, now {line['state']}")
        self.stdout.write(f"{len(reaped)} lost jobs, {sum(sent.values())} messages sent again")
