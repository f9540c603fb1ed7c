from django.db import models
from django.utils import timezone

from jobs.models.job import Job


class JobEvent(models.Model):
    """Something that happened to a job: a change of state, a wish, a lost worker. Written once, never changed."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField(default=timezone.now)
    what = models.CharField(max_length=120)
    detail = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return self.what


class Progress(models.Model):
    """A point of a job's history: every 5 % or every minute."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="progress_history")
    at = models.DateTimeField(default=timezone.now)
    stage = models.CharField(max_length=60)
    percent = models.FloatField()
    done = models.FloatField()
    total = models.FloatField(null=True)
    rate = models.FloatField(null=True)  # units of the stage per second

    class Meta:
        ordering = ["pk"]
        verbose_name_plural = "progress"

    def __str__(self) -> str:
        return f"{self.percent:.1f} %"


class Metric(models.Model):
    """What a job measured at a step. A resumed job that measures a step again replaces it."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="metrics")
    step = models.BigIntegerField()
    values = models.JSONField()

    class Meta:
        ordering = ["step"]
        constraints = [models.UniqueConstraint(fields=["job", "step"], name="metric_once_per_step")]

    def __str__(self) -> str:
        return f"step {self.step}"

    @classmethod
    def history(cls, subject: str, at_most: int = 300) -> list[tuple[int, dict[str, float]]]:
        """Over all jobs of a subject in the order of steps, thinned evenly; the last is always there.

        Where a later job measured a step again, its values count."""
        rows = cls.objects.filter(job__subject=subject).order_by("job_id", "step")
        steps = sorted(set(rows.values_list("step", flat=True)))
        every = max(1, -(-len(steps) // at_most))
        kept = steps[::-1][::every]
        found = {row.step: finite(row.values) for row in rows.filter(step__in=kept)}
        return sorted(found.items())


def finite(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
