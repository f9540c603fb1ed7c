import json
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError

from mistudio.demo.corpus import documents

if TYPE_CHECKING:
    from jobs.ml.pretrain import Recipe

BUNDLED = Path(__file__).resolve().parents[2] / "demo" / "model"
STEPS = 5000


class Command(BaseCommand):
    help = "Train the small language model that comes with miStudio, on the library of this Python."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--output", type=Path, default=BUNDLED, help="folder for the model (default: the bundled one)"
        )
        parser.add_argument(
            "--corpus", type=Path, help="JSON lines with title and text, instead of this Python's library"
        )
        parser.add_argument("--steps", type=int, default=STEPS, help="batches of 8 sequences (default: %(default)s)")
        parser.add_argument("--seed", type=int, default=0, help="of the weights and the order (default: %(default)s)")
        parser.add_argument(
            "--threads", type=int, default=1, help="another number, other weights (default: %(default)s)"
        )
        parser.add_argument("--json", action="store_true", help="print what training.json says")

    def handle(self, **options: Any) -> None:
        from jobs.ml.pretrain import Recipe, pretrain

        if min(options["steps"], options["threads"]) < 1 or options["seed"] < 0:
            raise CommandError("Steps and threads start at 1, the seed at 0.")
        recipe = Recipe(steps=options["steps"], seed=options["seed"], threads=options["threads"])
        try:
            facts = pretrain(_texts(options["corpus"]), options["output"], recipe, self.stderr.write, _command(recipe))
        except (OSError, ValueError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(json.dumps(facts, indent=2) if options["json"] else _summary(options["output"], facts))


def _texts(corpus: Path | None) -> Iterator[tuple[str, str]]:
    if corpus is None:
        yield from ((document.title, document.text) for document in documents())
        return
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            yield document["title"], document["text"]


def _command(recipe: "Recipe") -> str:
    options = f"--steps {recipe.steps} --seed {recipe.seed} --threads {recipe.threads}"
    return f"python manage.py build_demo_model {options}"


def _summary(folder: Path, facts: dict[str, Any]) -> str:
    measured = facts["measured_on_held_out"]
    return f"{folder}: perplexity {measured['perplexity']} on {measured['tokens']:,} held-out tokens"
