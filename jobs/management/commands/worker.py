import os
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from jobs.queue import QUEUES


class Command(BaseCommand):
    help = "Run the jobs of one queue until it is told to stop."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--queue", choices=QUEUES, required=True)

    def handle(self, *args: Any, **options: Any) -> None:
        queue = options["queue"]
        if os.environ.get("Q_CLUSTER_NAME") != queue:
            # django-q2 reads the name of its queue when it is imported, which has happened by now.
            os.execve(sys.executable, sys.orig_argv, {**os.environ, "Q_CLUSTER_NAME": queue})
        from jobs.work import WorkerProcess

        WorkerProcess(queue).serve()
