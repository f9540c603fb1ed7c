from typing import Any

from django.db import models

from jobs.ownership import Owned


class Template(Owned):
    """Settings of one kind of work under a name, to start from again. Everybody in the team has them."""

    noun = models.CharField(max_length=40)  # what the settings make, as the model is called: "training"
    name = models.CharField(max_length=120)
    values = models.JSONField(default=dict)  # field of the form → value
    favourite = models.BooleanField(default=False)

    class Meta:
        ordering = ("-favourite", "noun", "name")
        constraints = (models.UniqueConstraint(fields=["team", "noun", "name"], name="template_name_once_per_noun"),)

    def __str__(self) -> str:
        return self.name

    def document(self) -> dict[str, Any]:
        """What another miStudio takes in."""
        return {"noun": self.noun, "name": self.name, "values": self.values}
