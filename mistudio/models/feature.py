from django.conf import settings
from django.db import models
from django.urls import reverse

from mistudio.models.sae import Sae

DENSE = 0.1  # of tokens


class Feature(models.Model):
    """One latent of an SAE as people read it. Its team is its SAE's; its examples are read from the scan's evidence."""

    sae = models.ForeignKey(Sae, on_delete=models.CASCADE, related_name="features")
    index = models.PositiveIntegerField()
    n_fired = models.BigIntegerField(default=0)
    density = models.FloatField(default=0)  # tokens fired / tokens scanned
    max_activation = models.FloatField(default=0)
    mean_activation = models.FloatField(default=0)  # over the tokens where it fires
    top_tokens = models.CharField(max_length=300, blank=True)  # pieces with the strongest activations, for the search
    label = models.CharField(max_length=200, blank=True)
    notes = models.TextField(blank=True, max_length=10_000)
    labelled_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    labelled_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["index"]
        constraints = [models.UniqueConstraint(fields=["sae", "index"], name="feature_once")]
        indexes = [
            models.Index(fields=["sae", "density"]),
            models.Index(fields=["sae", "max_activation"]),
            models.Index(fields=["sae", "mean_activation"]),
            models.Index(fields=["sae", "label"]),
        ]

    def __str__(self) -> str:
        return f"{self.sae} #{self.index}"

    def get_absolute_url(self) -> str:
        return reverse("feature", args=[self.sae_id, self.index])

    @property
    def dead(self) -> bool:
        return self.n_fired == 0

    @property
    def dense(self) -> bool:
        return self.density > DENSE
