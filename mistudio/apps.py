from django.apps import AppConfig
from django.db.models.signals import post_save


class MistudioConfig(AppConfig):
    name = "mistudio"
    verbose_name = "miStudio"

    def ready(self) -> None:
        from jobs.models import Job
        from mistudio.models.artifact import follow_job

        post_save.connect(follow_job, sender=Job, dispatch_uid="artifact follows its job")
