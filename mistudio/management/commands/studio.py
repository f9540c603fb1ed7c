from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from jobs.studio import CannotStart, Studio
from mistudio.management.commands.createadmin import administrator
from mistudio.models import User
from mistudio.views.account import links


class Command(BaseCommand):
    help = "Run the site and its workers until Ctrl-C."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
        parser.add_argument("--port", type=int, help="default: MISTUDIO_PORT, or the next that is free")
        parser.add_argument("--no-worker", action="store_true", help="the site alone; workers run elsewhere")
        parser.add_argument("--quiet", action="store_true", help="say nothing when ready")

    def handle(self, *args: Any, **options: Any) -> None:
        on_ready = None if options["quiet"] else self.say_ready
        studio = Studio(options["host"], options["port"], not options["no_worker"], on_ready)
        try:
            studio.run()
        except CannotStart as reason:
            raise CommandError(str(reason)) from reason

    def say_ready(self, url: str) -> None:
        """With a link for the first administrator, until one has signed in: later starts keep links out of logs."""
        if User.objects.filter(is_superuser=True, last_login__isnull=False).exists():
            self.stdout.write(f"miStudio runs at {url}  Stop it with Ctrl-C.")
        else:
            link = url.rstrip("/") + links.path(administrator("admin"))
            self.stdout.write(f"miStudio runs. Sign in once as its first administrator, within a day:\n  {link}")
        self.stdout.flush()
