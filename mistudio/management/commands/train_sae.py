import argparse
from typing import Any

from mistudio.forms.training import TrainingForm
from mistudio.management.artifact_command import ArtifactCommand
from mistudio.models import ActivationCache, Team


class Command(ArtifactCommand):
    help = "Train sparse autoencoders on the activations of a model's sites."
    form_class = TrainingForm
    positional = ("tokenization",)
    own = ("caches",)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        about = "read activations from this cache, by name or id, in place of computing them; again for each of several"
        parser.add_argument("--cache", action="append", dest="caches", metavar="CACHE[:WEIGHT]", help=about)

    def form_data(self, team: Team, options: dict[str, Any]) -> dict[str, Any]:
        caches = [self.cache(team, word) for word in options["caches"] or ()]
        return {**super().form_data(team, options), "caches": caches}

    def cache(self, team: Team, word: str) -> str:
        name, _, weight = word.rpartition(":")
        if not name or ActivationCache.objects.of_team(team).filter(name=word).exists():
            name, weight = word, ""
        key = self.key_of(team, ActivationCache, "cache", name)
        return f"{key}:{weight}" if weight else key
