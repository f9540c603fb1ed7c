from typing import Any

from django.contrib.auth.models import AbstractUser
from django.db import models


class Team(models.Model):
    name = models.CharField(max_length=80, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name

    @classmethod
    def default(cls) -> "Team":
        """The one team that exists from the start."""
        return cls.objects.order_by("pk").first() or cls.objects.get_or_create(name="Home team")[0]


class User(AbstractUser):
    """A person. Everyone is a member of at least one team; pages show the first."""

    PACES = (1, 2, 5, 10)

    monitor_seconds = models.PositiveSmallIntegerField(
        "monitor",
        default=2,
        choices=[(pace, f"every {pace} s") for pace in PACES],
        help_text="How often it is updated.",
    )
    teams: models.ManyToManyField = models.ManyToManyField(Team, through="Membership", related_name="members")

    @property
    def team(self) -> Team | None:
        if not hasattr(self, "_team"):
            self._team = self.teams.order_by("membership__pk").first()
        return self._team

    def save(self, *args: Any, **kwargs: Any) -> None:
        new = self._state.adding
        super().save(*args, **kwargs)
        if new:
            Membership.objects.get_or_create(team=Team.default(), user=self)


class Membership(models.Model):
    team = models.ForeignKey(Team, on_delete=models.CASCADE)
    user = models.ForeignKey(User, on_delete=models.CASCADE)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["team", "user"], name="membership_once")]

    def __str__(self) -> str:
        return f"{self.user} in {self.team}"
