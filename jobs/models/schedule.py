from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.db import models
from django.utils import timezone


class Every(models.TextChoices):
    HOURLY = "hourly", "every hour"
    DAILY = "daily", "every day"
    WEEKLY = "weekly", "every week"


class Weekday(models.IntegerChoices):
    MONDAY, TUESDAY, WEDNESDAY, THURSDAY, FRIDAY, SATURDAY, SUNDAY = range(7)


STEPS: dict[str, timedelta] = {
    Every.HOURLY: timedelta(hours=1),
    Every.DAILY: timedelta(days=1),
    Every.WEEKLY: timedelta(weeks=1),
}


class Schedule(models.Model):
    """When a task of upkeep runs by itself."""

    task = models.CharField(max_length=60, unique=True, editable=False)
    every = models.CharField("how often", max_length=10, choices=Every.choices, default=Every.DAILY)
    at = models.TimeField()  # of an hourly one the minutes count alone
    weekday = models.PositiveSmallIntegerField(choices=Weekday.choices, default=Weekday.SUNDAY)  # of a weekly one
    enabled = models.BooleanField("runs by itself", default=True)
    next_at = models.DateTimeField(editable=False)

    class Meta:
        ordering: ClassVar[list[str]] = ["pk"]

    def __str__(self) -> str:
        return self.task

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.next_at = self.following(timezone.now())
        super().save(*args, **kwargs)

    @property
    def said(self) -> str:
        if self.every == Every.HOURLY:
            return f"every hour at :{self.at:%M}"
        day = f"{Weekday(self.weekday).label}s" if self.every == Every.WEEKLY else "daily"
        return f"{day} at {self.at:%H:%M}"

    def following(self, now: datetime) -> datetime:
        """The next time after `now`: however long nobody looked, what was missed is due once."""
        here = timezone.localtime(now)
        at = here.replace(minute=self.at.minute, second=0, microsecond=0)
        if self.every != Every.HOURLY:
            at = at.replace(hour=self.at.hour)
        if self.every == Every.WEEKLY:
            at += timedelta(days=self.weekday - here.weekday())
        while at <= here:
            at += STEPS[self.every]
        return at
