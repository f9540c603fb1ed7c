import argparse
from typing import Any

from django.core.exceptions import ObjectDoesNotExist

from jobs.management.job_command import BadInput, JobCommand
from jobs.models import Job
from mistudio.models import LanguageModel, Team, User


class ModelCommand(JobCommand):
    """Some work on a language model that is there."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("language_model", help="By name or id.")

    def make_job(self, team: Team, owner: User | None, options: dict[str, Any]) -> tuple[Job, LanguageModel]:
        try:
            model = LanguageModel.of_reference(team, options["language_model"])
        except ObjectDoesNotExist:
            known = list(LanguageModel.objects.of_team(team).values_list("name", flat=True)[:8])
            there_are = f"There are: {', '.join(known)}." if known else "There are none yet."
            said = f"No language model “{options['language_model']}” by name or id. {there_are}"
            raise BadInput({"language_model": [said]}) from None
        return self.begin(model, owner, options), model

    def begin(self, model: LanguageModel, owner: User | None, options: dict[str, Any]) -> Job:
        """Raises BadInput or InvalidInput."""
        raise NotImplementedError

    def describe(self, model: LanguageModel) -> dict[str, Any]:
        return {"id": model.pk, "name": model.name, "noun": "languagemodel", "state": model.state}
