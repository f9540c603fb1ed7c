import logging

from django.apps import AppConfig
from django.conf import settings


class JobsConfig(AppConfig):
    name = "jobs"
    verbose_name = "Jobs"

    def ready(self) -> None:
        from jobs import checks  # noqa: F401  registers the system checks

        logging.captureWarnings(settings.LOG_FORMAT == "json")  # whoever reads JSON reads nothing else
