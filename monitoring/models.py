from typing import Self

from django.conf import settings
from django.db import models
from django.utils import timezone


class Host(models.Model):
    name = models.CharField(max_length=200, unique=True)
    # What its sampler knows beside figures: {"gpus": {number: name}, "absent": {what: why}, "seconds": interval}
    facts = models.JSONField(default=dict)

    def __str__(self) -> str:
        return self.name


class Sample(models.Model):
    """The readings of an interval: of each series its mean and its peak."""

    host = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="samples")
    resolution = models.PositiveSmallIntegerField()  # length of the interval in seconds; 1: a single reading
    at = models.DateTimeField()  # start of the interval
    n = models.PositiveSmallIntegerField(default=1)  # readings
    mean = models.JSONField()
    peak = models.JSONField(default=dict)  # empty for a single reading: it is the mean

    class Meta:
        constraints = [models.UniqueConstraint(fields=["host", "resolution", "at"], name="one_sample_per_interval")]

    def __str__(self) -> str:
        return f"{self.host_id} {self.at:%Y-%m-%d %H:%M:%S} {self.resolution} s"


class Threshold(models.Model):
    """Of a rule for which the values of `monitoring.rules` do not fit here."""

    rule = models.CharField(max_length=60, unique=True)
    on = models.BooleanField(default=True, help_text="Off: the rule raises no alert.")
    limit = models.FloatField(help_text="What is worse raises an alert.")
    recovers = models.FloatField(help_text="What is not worse ends it.")
    seconds = models.PositiveIntegerField(
        default=0, help_text="For how long, each time; 0 for a rule that measures seconds itself."
    )

    def __str__(self) -> str:
        return self.rule


class AlertQuerySet(models.QuerySet):
    def open(self) -> Self:
        return self.filter(recovered_at=None)

    def loud(self) -> Self:
        """Open, and not silenced now."""
        return self.open().exclude(silenced_until__gt=timezone.now())


class Alert(models.Model):
    """From when a value broke a rule until it kept it again."""

    rule = models.CharField(max_length=60)
    host = models.CharField(max_length=200, blank=True)  # its name; empty when it is of no host
    thing = models.CharField(max_length=200, blank=True)  # "GPU 1", "/data", "queue gpu"; empty for the host itself
    since = models.DateTimeField()
    worst = models.FloatField()  # value, in the rule's unit
    seen_at = models.DateTimeField()  # when it was noted last that it still is
    recovered_at = models.DateTimeField(null=True, blank=True)
    gone = models.BooleanField(default=False)  # it did not recover: what it was about is no longer there
    silenced_until = models.DateTimeField(null=True, blank=True)
    silenced_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )

    objects = AlertQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["rule", "host", "thing"],
                condition=models.Q(recovered_at=None),
                name="one_open_alert_per_rule_and_thing",
            )
        ]
        indexes = [models.Index(fields=["recovered_at"])]

    def __str__(self) -> str:
        return " ".join(part for part in (self.rule, self.thing, self.host and f"on {self.host}") if part)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.rule, self.host, self.thing
