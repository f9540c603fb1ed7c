import argparse
import re
from typing import Any

from mistudio.forms.mixture import MixtureForm
from mistudio.management.artifact_command import ArtifactCommand
from mistudio.models import Dataset, Team

DOCUMENTS = re.compile(r"(\d+)\s*documents?")


class Command(ArtifactCommand):
    help = "Make one dataset of several, by weight."
    form_class = MixtureForm

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        about = "NAME, NAME=WEIGHT or NAME=WEIGHT,LIMIT, such as texts=3,500MB or code=1,20000documents"
        parser.add_argument("parts", nargs="+", metavar="part", help=about)

    def form_data(self, team: Team, options: dict[str, Any]) -> dict[str, Any]:
        data = super().form_data(team, options)
        for n, word in enumerate(options["parts"]):
            name, _, said = word.rpartition("=") if "=" in word else (word, "", "1")
            weight, *limits = said.split(",")
            data |= {f"part_{n}": self.key_of(team, Dataset, "parts", name), f"weight_{n}": weight}
            for limit in limits:
                documents = DOCUMENTS.fullmatch(limit.strip())
                data |= {f"documents_{n}": documents[1]} if documents else {f"bytes_{n}": limit}
        return data
