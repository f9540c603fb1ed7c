import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand

from jobs.management.job_command import BAD_INPUT
from mistudio.forms.language_model import RecommendationForm
from mistudio.models import Team
from mistudio.recommend import PURPOSES, Recommendation


class Command(BaseCommand):
    help = "Say which language model, precision and batch to take for a purpose, by what was measured here, and why."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("purpose", help=", ".join(PURPOSES))
        parser.add_argument("--tokens", help="to read (default: 1,000,000)")
        parser.add_argument("--hours", help="it may take (default: 1)")
        parser.add_argument("--device", help="on which it was measured (default: any)")
        parser.add_argument("--team", help="name of the team (default: the first)")
        parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON document")

    def handle(self, *args: Any, **options: Any) -> None:
        team = Team.objects.filter(name=options["team"]).first() if options["team"] else Team.default()
        if team is None:
            self.refuse({"team": [f"There is no team “{options['team']}”."]})
            return
        given = {name: options[name] for name in ("purpose", "tokens", "hours", "device") if options[name]}
        form = RecommendationForm(given, team=team)
        if not form.is_valid():
            self.refuse({field: [str(error) for error in errors] for field, errors in form.errors.items()})
            return
        found = form.recommendation()
        self.stdout.write(json.dumps(asdict(found)) if options["as_json"] else in_words(found))

    def refuse(self, errors: dict[str, list[str]]) -> None:
        for name, sentences in errors.items():
            self.stderr.write(f"{name}: {' '.join(sentences)}")
        sys.exit(BAD_INPUT)


def in_words(found: Recommendation) -> str:
    lines = ["Nothing can be recommended: no model that can be used was measured. See “mistudio measure_model”."]
    if best := found.best:
        speed = f"{best.tokens_per_second:,.0f} tokens/s on {best.device}, {best.n} observations"
        lines = [f"{best.name} in {best.dtype}, {best.rows} rows in a pass: {speed}.", *best.reasons]
    lines += [f"Excluded: {out.name}{f' in {out.dtype}' if out.dtype else ''}: {out.why}" for out in found.excluded]
    return "\n".join([*lines, *(f"{out.name} in {out.dtype}: {out.why}" for out in found.unmeasured)])
