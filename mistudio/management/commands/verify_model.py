from typing import Any

from jobs.management.job_command import DONE, FAILED
from jobs.models import Job
from mistudio.management.model_command import ModelCommand
from mistudio.models import LanguageModel, User


class Command(ModelCommand):
    help = "Read every file of a language model and compare it with its checksum. Exit status 1 where one differs."

    def begin(self, model: LanguageModel, owner: User | None, options: dict[str, Any]) -> Job:
        return model.verify(owner)

    def tell_end(self, job: Job, target: Any) -> int:
        code = super().tell_end(job, target)
        damaged = job.result.get("damaged") if code == DONE else None
        for name, wrong in (damaged or {}).items():
            self.stderr.write(f"{name} {wrong}")
        return FAILED if damaged else code
