import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from jobs.errors import InvalidInput, JobError
from mistudio import backups


class Command(BaseCommand):
    help = "Put a backup in the place of the database. Stop the site, the workers and the monitor before."
    requires_system_checks = ()  # the database may be what is broken

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("backup", type=Path, help="a file that upkeep wrote: see MISTUDIO_DATA/backups")

    def handle(self, *args: Any, backup: Path, **options: Any) -> None:
        try:
            before = restore(backup)
        except (InvalidInput, JobError) as refused:
            self.stderr.write(f"{refused.message} {refused.hint}".strip())
            sys.exit(2)
        if before:
            self.stdout.write(f"The database before is kept as {before}.")
        self.stdout.write(
            "Restored. Run mistudio migrate, then mistudio doctor: it names what is missing or left over."
        )


def restore(backup: Path) -> Path | None:
    """Raises InvalidInput, JobError."""
    if not backup.is_file():
        known = "".join(f" {path}" for path in list(backups.there().values())[-5:])
        raise InvalidInput(f"There is no file {backup}.", f"The newest backups are:{known or ' none'}.", "backup")
    if not backups.postgres():
        return backups.restore_sqlite(backup)
    if n := backups.others_connected():
        said = f"{n} other connections to the database are open."
        raise InvalidInput(said, "Stop the site, the workers and the monitor first.", "backup")
    backups.restore_postgres(backup, "")
    return None
