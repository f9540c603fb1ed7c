from django.db import models
from django.utils import timezone


class LiveEvent(models.Model):
    """“Look again at this topic.” Web processes read these in order; the row of the topic is the truth."""

    topic = models.CharField(max_length=120)
    at = models.DateTimeField(default=timezone.now, db_index=True)

    def __str__(self) -> str:
        return self.topic
