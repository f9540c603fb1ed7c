import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand

from jobs.management.job_command import BAD_INPUT
from jobs.queue import QUEUES, pause_queue, resume_queue
from jobs.queues import Standing, standings


class Command(BaseCommand):
    help = "Look at the queues, pause one, or resume it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="action", required=True)
        show = commands.add_parser("show", help="workers, slots, what runs and waits, and who paused it")
        show.add_argument("queue", nargs="?", choices=QUEUES)
        pause = commands.add_parser("pause", help="start nothing more; what runs goes on to its end")
        pause.add_argument("--now", action="store_true", help="let what runs save its state and rest, where it can")
        pause.add_argument("--reason", default="", help="shown to everybody who waits")
        pause.add_argument("--user", help="username of who pauses it (default: nobody)")
        resume = commands.add_parser("resume", help="start what waits again")
        for command in (pause, resume):
            command.add_argument("queue", choices=QUEUES)
        for command in (show, pause, resume):
            command.add_argument("--json", action="store_true", dest="as_json", help="print one JSON document")

    def handle(self, *args: Any, **options: Any) -> None:
        queue, action = options["queue"], options["action"]
        if action == "pause":
            by = get_user_model()._default_manager.filter(username=options["user"]).first()
            if options["user"] and by is None:
                self.stderr.write(f"user: There is no user “{options['user']}”.")
                sys.exit(BAD_INPUT)
            pause_queue(queue, by=by, reason=options["reason"], now=options["now"])
        elif action == "resume":
            resume_queue(queue)
        shown = [standing for standing in standings() if queue in (None, standing.name)]
        if options["as_json"]:
            self.stdout.write(json.dumps([described(standing) for standing in shown]))
        else:
            self.stdout.write("\n".join(map(line, shown)))


def described(standing: Standing) -> dict[str, Any]:
    pause = standing.pause
    return {
        "queue": standing.name,
        "workers": len(standing.workers),
        "slots": standing.slots,
        "running": [job.pk for job in standing.running],
        "waiting": standing.waiting,
        "paused": {"at": pause.at.isoformat(), "by": pause.by and str(pause.by), "reason": pause.reason}
        if pause
        else None,
    }


def line(standing: Standing) -> str:
    how = f"{standing.pause}." if standing.pause else f"The {standing.name} queue is open."
    slots = f"{len(standing.running)} of {standing.slots} slots in use" if standing.slots else "no worker is running"
    return f"{how} {slots.capitalize()}, {standing.waiting} waiting."
