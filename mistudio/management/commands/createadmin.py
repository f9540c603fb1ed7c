import json
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from jobs.studio import running_studio
from mistudio.models import User
from mistudio.views.account import links


class Command(BaseCommand):
    help = "Make an administrator, or find the one there is, and print a link that signs in once within a day."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--username", default="admin")
        parser.add_argument("--url", help="where the site answers (default: the studio that runs on this machine)")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        here = running_studio(settings.MISTUDIO_DATA).get("url") or f"http://127.0.0.1:{settings.MISTUDIO_PORT}"
        link = (options["url"] or here).rstrip("/") + links.path(administrator(options["username"]))
        self.stdout.write(json.dumps({"username": options["username"], "link": link}) if options["json"] else link)


def administrator(username: str) -> User:
    """Raises CommandError when the name is no administrator's: a link would hand over somebody's account."""
    user = User.objects.filter(username=username).first()
    if user is None:
        return User.objects.create_superuser(username=username)
    if not (user.is_superuser and user.is_active):
        raise CommandError(f"--username: {username} exists and is no active administrator. Choose another name.")
    return user
