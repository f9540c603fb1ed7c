from django.db import models


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
