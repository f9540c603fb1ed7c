from django.db import models
from django.utils import timezone

from jobs.models import Job
from mistudio.models.team import User
from mistudio.sealing import seal, unseal


class HubToken(models.Model):
    """A person's token of the hub. It goes in and to the hub, and is shown nowhere: `shown` is its last letters."""

    user = models.OneToOneField(User, on_delete=models.CASCADE, related_name="hub_token")
    sealed = models.TextField(editable=False)
    shown = models.CharField(max_length=20, editable=False)
    stored_at = models.DateTimeField(default=timezone.now, editable=False)

    def __str__(self) -> str:
        return f"{self.shown} of {self.user}"

    @classmethod
    def store(cls, user: User, token: str) -> "HubToken":
        kept = {"sealed": seal(token, purpose(user.pk)), "shown": shortened(token), "stored_at": timezone.now()}
        return cls.objects.update_or_create(user=user, defaults=kept)[0]

    @classmethod
    def of(cls, user_pk: int | None) -> "HubToken | None":
        return cls.objects.filter(user=user_pk).first() if user_pk else None

    @property
    def readable(self) -> bool:
        """False after the secret key of this installation has changed."""
        return bool(self.read())

    def read(self) -> str:
        return unseal(self.sealed, purpose(self.user_id)) or ""


def purpose(user_pk: int) -> str:
    """Of each person alone: a row that is moved to another person opens nothing."""
    return f"hub token of user {user_pk}"


def shortened(token: str) -> str:
    head = "hf_" if token.startswith("hf_") else ""
    return f"{head}…{token[-4:]}"


def token_of(user_pk: int | None) -> str:
    """ "" for nobody, for who has stored none, and for one that cannot be read any more."""
    stored = HubToken.of(user_pk)
    return stored.read() if stored else ""


def secrets_of(job: Job) -> dict[str, str]:
    """The token of the one who asked for the job, whoever resumes or retries it. None: the worker's own counts."""
    token = token_of(job.owner_id)
    return {"HF_TOKEN": token} if token else {}
