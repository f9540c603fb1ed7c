import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from jobs.errors import InvalidInput
from jobs.kinds.sources import check_source
from mistudio.formats import binary, si
from mistudio.models import User
from mistudio.models.hub_token import token_of


class Command(BaseCommand):
    help = "Say what the hub has under an id: commit, licence, files and what they cost. Nothing is fetched."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("id", help="such as openai-community/gpt2")
        parser.add_argument("--revision", default="", help="branch, tag or commit (default: the default branch)")
        parser.add_argument("--dataset", action="store_true", help="it is a dataset, not a model")
        parser.add_argument("--user", help="whose token of the hub to use (default: HF_TOKEN)")
        parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON document")

    def handle(self, *args: Any, **options: Any) -> None:
        from jobs.ml.hub_preview import preview

        kind = "dataset" if options["dataset"] else "model"
        user = User.objects.filter(username=options["user"]).first() if options["user"] else None
        if options["user"] and user is None:
            raise CommandError(f"There is no user “{options['user']}”.")
        try:
            check_source(options["id"], options["revision"], "/", kind)
            seen = preview(kind, options["id"], options["revision"], token=token_of(user.pk if user else None))
        except (InvalidInput, OSError) as error:
            raise CommandError(f"{error} {getattr(error, 'hint', '')}".strip()) from None
        self.stdout.write(json.dumps(asdict(seen)) if options["as_json"] else "\n".join(lines(seen)))


def lines(seen: Any) -> list[str]:
    """Name and value of what is known, for people."""
    facts = asdict(seen.facts) if seen.facts else {}
    said = {
        "id": seen.repository.id,
        "commit": seen.repository.commit,
        "licence": seen.licence or "not stated",
        "access": "private" if seen.private else "gated" if seen.gated else "open",
        "closed": seen.closed,
        "cannot be added": seen.refusal,
        **{name.replace("_", " "): value for name, value in facts.items()},
        "parameters": seen.n_parameters and f"{si(seen.n_parameters)}{' (estimate)' if seen.estimated else ''}",
        "files": f"{len(seen.repository.files):,}, {binary(seen.total_bytes)}",
        "to fetch": f"{binary(seen.taken_bytes)} in {len(seen.taken)} files" if seen.taken else "",
    }
    return [f"{name:>16}: {value}" for name, value in said.items() if value not in ("", None)]
