from typing import Any, Self

from django.conf import settings
from django.db import models


class OwnedQuerySet(models.QuerySet):
    def of_team(self, team: Any) -> Self:
        """The only way a page or a command may reach rows: a foreign object does not exist for the reader, and of no
        team is nothing."""
        return self.none() if team is None else self.filter(team=team)


OwnedManager = models.Manager.from_queryset(OwnedQuerySet)


class Owned(models.Model):
    """Something that a team has. The team is a setting, so that the runner need not know the domain."""

    team = models.ForeignKey(settings.TEAM_MODEL, on_delete=models.CASCADE, related_name="+")
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = OwnedManager()

    class Meta:
        abstract = True
