import sys
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError

from jobs.errors import InvalidInput, JobError
from mistudio import backups
from mistudio.upkeep.orphans import newest, rooms


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
        if moved := set_aside():
            where = moved[0].parent.parent
            self.stdout.write(f"{len(moved)} folders that are newer than the backup were moved to {where}.")
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


def set_aside() -> list[Path]:
    """The restored database gives the numbers of folders that are newer than its rows again: these make room. Returns
    where they are now."""
    moved = []
    aside = settings.MISTUDIO_DATA / f"newer-than-backup-{time.strftime('%Y%m%dT%H%M%S')}"
    for room, model in rooms().items():
        try:
            last = newest(model)
        except DatabaseError:  # the backup is older than this table
            last = 0
        for folder in sorted((settings.MISTUDIO_DATA / room).glob("*")):
            if folder.name.isdecimal() and int(folder.name) > last:
                (aside / room).mkdir(parents=True, exist_ok=True)
                moved.append(folder.rename(aside / room / folder.name))
    return moved
