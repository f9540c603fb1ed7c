from django.apps import AppConfig
from django.db.models.signals import post_delete, post_save


class MistudioConfig(AppConfig):
    name = "mistudio"
    verbose_name = "miStudio"

    def ready(self) -> None:
        from jobs.models import Job, QueuePause, Worker
        from mistudio.models.artifact import follow_job
        from mistudio.views.shell import tell_all
        from monitoring.alerts import changed

        post_save.connect(follow_job, sender=Job, dispatch_uid="artifact follows its job")
        changed.connect(tell_all, dispatch_uid="headers say how many alerts are open")
        for moment in (post_save, post_delete):
            moment.connect(tell_all, sender=QueuePause, dispatch_uid="headers say which queues are paused")
            moment.connect(tell_all, sender=Worker, dispatch_uid="headers say whether a worker is there")
