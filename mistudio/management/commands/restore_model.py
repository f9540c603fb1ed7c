from typing import Any

from jobs.models import Job
from mistudio.management.model_command import ModelCommand
from mistudio.models import LanguageModel, User


class Command(ModelCommand):
    help = "Fetch again what is missing or damaged of a language model, and nothing else."

    def begin(self, model: LanguageModel, owner: User | None, options: dict[str, Any]) -> Job:
        return model.restore(owner)
