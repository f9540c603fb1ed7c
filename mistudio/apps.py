from django.apps import AppConfig
from django.db.models.signals import post_save


class MistudioConfig(AppConfig):
    name = "mistudio"
    verbose_name = "miStudio"

    def ready(self) -> None:
        from jobs.models import Job
        from mistudio.models.artifact import follow_job
        from mistudio.views.shell import tell_of_alerts
        from monitoring.alerts import changed

        post_save.connect(follow_job, sender=Job, dispatch_uid="artifact follows its job")
        changed.connect(tell_of_alerts, dispatch_uid="headers say how many alerts are open")
