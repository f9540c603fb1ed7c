"""Whether the database has the tables of this version."""

import functools

from django.apps import apps
from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

Migration = tuple[str, str]  # app, name


@functools.cache
def known() -> frozenset[Migration]:
    """Those of this version. They are files, and a process runs one version as long as it lives."""
    return frozenset(MigrationLoader(None).disk_migrations)


def applied() -> set[Migration]:
    """Raises DatabaseError."""
    return set(MigrationRecorder(connection).applied_migrations())


def unapplied() -> list[str]:
    """Raises DatabaseError."""
    return sorted(map(".".join, known() - applied()))


def newer() -> list[str]:
    """Applied by another version, of apps that this one has, too. Raises DatabaseError."""
    ours = {app.label for app in apps.get_app_configs()}
    return sorted(f"{app}.{name}" for app, name in applied() - known() if app in ours)
