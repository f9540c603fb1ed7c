import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from mistudio.models.upload import sweep


class Command(BaseCommand):
    help = "Remove uploads that nobody went on with for a day, or that are a week old. Workers do this themselves."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def handle(self, *args: Any, **options: Any) -> None:
        names = sweep()
        self.stdout.write(json.dumps({"removed": names}) if options["json"] else f"{len(names)} uploads removed")
