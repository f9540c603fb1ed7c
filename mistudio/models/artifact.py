import shlex
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ObjectDoesNotExist
from django.db import models, transaction
from django.urls import reverse
from django.utils import timezone

from jobs.errors import InvalidInput
from jobs.ml.store import read_json_if_there, sha256
from jobs.models import Job, State
from jobs.ownership import Owned
from jobs.queue import submit

USERS = 20  # of a kind that are named; of more it is enough to know that they are there


class InUse(Exception):
    """Something cannot be deleted; `users` says by what it is needed."""

    def __init__(self, what: "Artifact", users: list[str]) -> None:
        self.users = users
        super().__init__(f"{what} is used by {', '.join(users)}. Delete {'it' if len(users) == 1 else 'them'} first.")


class Artifact(Owned):
    """A named thing made by a job, with a folder of files. `mistudio.ingest` fills the row when its job succeeds."""

    NOUN: ClassVar[str]  # what people call it: "training"
    ROOM: ClassVar[str]  # folder below MISTUDIO_DATA and first part of its address: "trainings"
    KIND: ClassVar[str]  # the job kind that makes it
    BUILT_ON: ClassVar[tuple[str, ...]] = ()  # its fields with what must be whole before the job starts

    name = models.CharField(max_length=120)
    # Made by the page that offers the form: the same form sent twice makes one object.
    submission = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    job = models.ForeignKey(Job, on_delete=models.SET_NULL, null=True, blank=True, related_name="+", editable=False)
    ready_at = models.DateTimeField(null=True, blank=True, editable=False)
    size_bytes = models.BigIntegerField(null=True, blank=True, editable=False)

    class Meta:
        abstract = True
        ordering: ClassVar[list[str]] = ["-pk"]
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["team", "name"], name="%(class)s_name_once_per_team")
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse(f"{self._meta.model_name}", args=[self.pk])

    @property
    def folder(self) -> Path:
        return settings.MISTUDIO_DATA / self.ROOM / str(self.pk)

    @property
    def kind(self) -> str:
        """The kind of the job that makes this one."""
        return self.KIND

    @property
    def subject(self) -> str:
        return f"{self._meta.model_name}:{self.pk}"

    @property
    def ready(self) -> bool:
        return self.ready_at is not None

    @property
    def state(self) -> str:
        """What the reader should know: ready, the state of the job that makes it, or "not started"."""
        if self.job and (self.job.state != State.SUCCEEDED or not self.ready):
            return self.job.state
        return "ready" if self.ready else "not started"

    def params(self) -> dict[str, Any]:
        """The parameters of the job that makes this."""
        raise NotImplementedError

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        """What the command of this kind is given to make the same: words, and options without those left open; one
        with a list is said for each of its values."""
        raise NotImplementedError

    def command(self) -> str:
        """The command that reproduces this, quoted for a shell."""
        words, options = self.arguments()
        said = [
            word
            for name, values in {"name": self.name, **options}.items()
            for value in (values if isinstance(values, list) else [values])
            if value not in (None, "") and value is not False
            for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
        ]
        return shlex.join(["mistudio", self.kind, *words, *said])

    @classmethod
    def of_reference(cls, team: Any, reference: str) -> Self:
        """By name, else by id. Raises DoesNotExist."""
        rows: Any = cls.objects.of_team(team)
        try:
            return rows.get(name=reference)
        except ObjectDoesNotExist:
            if reference.isdecimal():
                return rows.get(pk=int(reference))
            raise

    @classmethod
    def offered(cls, team: Any, unusable: list[int]) -> models.QuerySet:
        """What forms let a person choose. unusable: the language models of which nothing can be built."""
        rows: Any = cls.objects.of_team(team)
        rows = rows.filter(ready_at__isnull=False)
        return rows.exclude(language_model__in=unusable) if "language_model" in cls.BUILT_ON else rows

    def refusal(self) -> str:
        """Why nothing can be built on this; "" where nothing is wrong."""
        if not self.ready:
            return f"The {self.spoken()} is not ready."
        return next((why for name in self.BUILT_ON if (why := getattr(self, name).refusal())), "")

    def start(self) -> Job:
        """Hand the work to a worker. The stored `job` follows by the subject (see `follow_job`). Raises InvalidInput
        also where something it is built on cannot be used."""
        for name in self.BUILT_ON:
            if why := getattr(self, name).refusal():
                raise InvalidInput(why, field=name)
        self.job = submit(
            self.kind,
            self.params(),
            team=self.team,
            owner=self.owner,
            subject=self.subject,
            title=self.name,
        )
        return self.job

    def mark_ready(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        self.ready_at = timezone.now()
        self.size_bytes = folder_bytes(self.folder)
        self.save()

    @property
    def result_folder(self) -> Path:
        """Where the files are that a finished job leaves, with their manifest."""
        return self.folder

    def expected_files(self) -> dict[str, dict[str, Any]]:
        """Name → bytes and sha256, as the manifest has them; empty without one."""
        manifest = self.result_folder / "manifest.json"
        return read_json_if_there(manifest).get("files", {})

    def damage(self, advance: Callable[[int], None] = lambda n: None) -> list[str]:
        """What is wrong with the files: missing, or of another size or content. Reads them all; advance(bytes) may
        raise to stop."""
        if not self.ready:
            return ["not finished"]
        expected_files = self.expected_files()
        if not expected_files:
            return [f"{self.result_folder / 'manifest.json'} is missing or names no file"]
        found = []
        for name, expected in expected_files.items():
            path = self.result_folder / name
            if not path.is_file():
                found.append(f"{name} is missing")
            elif path.stat().st_size != expected["bytes"] or sha256(path, advance) != expected["sha256"]:
                found.append(f"{name} was changed")
        return found

    def spoken(self) -> str:
        return f"{self.NOUN} “{self.name}”"

    def uses(self) -> Iterator[tuple[str, models.QuerySet]]:
        """By which field which rows are built on this one, the newest first."""
        for relation in self._meta.related_objects:
            model: Any = relation.related_model
            if isinstance(model, type) and issubclass(model, Artifact):
                yield relation.field.name, model._default_manager.filter(**{relation.field.name: self})

    def users(self) -> "list[Artifact]":
        """What is built on this one, so many of each kind at most."""
        return [user for _, rows in self.uses() for user in rows[:USERS]]

    def usage(self, users: "list[Artifact]") -> list[dict[str, Any]]:
        """How many of each kind are built on this one, with the newest and the address of their list."""
        found = []
        for field, rows in self.uses():
            if some := [user for user in users if type(user) is rows.model]:
                n = len(some) if len(some) < USERS else rows.count()
                url = f"{reverse(f'{rows.model._meta.model_name}s')}?{field}={self.pk}"
                found.append({"noun": some[0].NOUN, "n": n, "newest": some[0], "url": url})
        return found

    def delete_with_files(self) -> None:
        """Raises InUse. The row goes first: a crash in between leaves files without a row, never the reverse."""
        if job := Job.objects.filter(subject=self.subject, state__in=State.unfinished()).first():
            raise InUse(self, [f"its unfinished job {job.pk}"])
        if users := self.users():
            raise InUse(self, [user.spoken() for user in users])
        folder = self.folder
        with transaction.atomic():
            self.delete()
            transaction.on_commit(lambda: shutil.rmtree(folder, ignore_errors=True))


def artifact_of(subject: str) -> Artifact | None:
    """The artifact that a job works on, from "training:12"; None when it is gone or no artifact."""
    name, _, key = subject.partition(":")
    try:
        model = apps.get_model("mistudio", name)
    except LookupError:
        return None
    if not issubclass(model, Artifact) or not key.isdecimal():
        return None
    rows: Any = model._default_manager
    return rows.select_related("job").filter(pk=int(key)).first()


def existing(subjects: set[str]) -> set[str]:
    """Those of the subjects whose artifact is still there. One query for each noun."""
    found = set()
    for noun in {subject.partition(":")[0] for subject in subjects if subject}:
        rows: Any = apps.get_model("mistudio", noun)._default_manager
        keys = [int(key) for name, _, key in (s.partition(":") for s in subjects) if name == noun and key.isdecimal()]
        found |= {f"{noun}:{pk}" for pk in rows.filter(pk__in=keys).values_list("pk", flat=True)}
    return found


def subject_url(subject: str) -> str:
    if subject.startswith("upkeep:"):
        return reverse("upkeep_task", args=[subject.removeprefix("upkeep:").removesuffix(".dry")])
    artifact = artifact_of(subject)
    return artifact.get_absolute_url() if artifact else ""


def follow_job(sender: type[Job], instance: Job, created: bool, **_: Any) -> None:
    """A new job that makes a subject, be it the first or a retry, is the one its artifact shows."""
    if created and (artifact := artifact_of(instance.subject)) and instance.kind == artifact.kind:
        rows: Any = type(artifact)._default_manager
        rows.filter(pk=artifact.pk).update(job=instance)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def free_name(rows: Any, wanted: str) -> str:
    wanted = wanted[:100]
    taken = set(rows.filter(name__startswith=wanted).values_list("name", flat=True))
    numbered = (f"{wanted}-{n}" for n in range(2, len(taken) + 3))
    return next(name for name in (wanted, *numbered) if name not in taken)
