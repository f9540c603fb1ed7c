from django.conf import settings
from django.db import models
from django.utils import timezone


class QueuePause(models.Model):
    """Nothing of this queue starts. The row exists as long as the pause lasts."""

    queue = models.CharField(max_length=20, unique=True)
    at = models.DateTimeField(default=timezone.now)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    reason = models.CharField(max_length=200, blank=True)

    def __str__(self) -> str:
        who = f" by {self.by}" if self.by else ""
        since = f"{timezone.localtime(self.at):%Y-%m-%d %H:%M %Z}"
        return f"The {self.queue} queue is paused{who} since {since}{f': {self.reason}' if self.reason else ''}"
