import argparse
from typing import Any

from jobs.management.job_command import BadInput
from jobs.ml.config import PRECISIONS
from jobs.models import Job
from mistudio.forms.language_model import MeasureForm
from mistudio.management.model_command import ModelCommand
from mistudio.models import LanguageModel, User


class Command(ModelCommand):
    help = "Load a language model and run it for some seconds: tokens per second, seconds to load, peak memory."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--dtype", help=f"precision: {', '.join(PRECISIONS)} (default: float32)")
        parser.add_argument("--context-length", help="tokens of a sequence (default: the model's, 512 at most)")

    def begin(self, model: LanguageModel, owner: User | None, options: dict[str, Any]) -> Job:
        form = MeasureForm({name: options[name] for name in ("dtype", "context_length") if options[name] is not None})
        if not form.is_valid():
            raise BadInput({field: [str(error) for error in errors] for field, errors in form.errors.items()})
        return model.measure(owner, **form.params())
