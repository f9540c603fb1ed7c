import logging

from django.apps import AppConfig
from django.conf import settings
from django.db.models.signals import post_migrate


class JobsConfig(AppConfig):
    name = "jobs"
    verbose_name = "Jobs"

    def ready(self) -> None:
        from jobs import checks  # noqa: F401  registers the system checks
        from jobs.upkeep.schedules import make_schedules

        post_migrate.connect(make_schedules, sender=self, dispatch_uid="every task of upkeep has a schedule")

        logging.captureWarnings(settings.LOG_FORMAT == "json")  # whoever reads JSON reads nothing else
