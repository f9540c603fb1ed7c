from functools import cached_property
from typing import Any

from django.db import models

from jobs.errors import InvalidInput
from jobs.kinds.sources import is_path
from jobs.ml import whole
from jobs.ml.config import AUTO
from jobs.ml.site_names import head_of, module_of, suggestion
from jobs.models import Job
from jobs.queue import submit
from mistudio.models.artifact import Artifact


class Precision(models.TextChoices):
    """How the weights are held while they are used; their files stay as they are."""

    FLOAT32 = "float32", "float32"
    BFLOAT16 = "bfloat16", "bfloat16"
    FLOAT16 = "float16", "float16"
    INT8 = "int8", "int8 (bitsandbytes)"
    INT4 = "int4", "int4 (bitsandbytes)"


RUN_PRECISIONS = [(AUTO, "the fastest here"), *Precision.choices]  # what a run may be told


class LanguageModel(Artifact):
    """A transformer in safetensors, from the hub or a local folder, with the sites whose activations can be read."""

    NOUN, ROOM, KIND = "language model", "models", "add_model"

    source = models.CharField(max_length=1000, help_text="A hub id such as openai-community/gpt2, or a local folder.")
    revision = models.CharField(max_length=120, blank=True)
    commit = models.CharField(max_length=64, blank=True, editable=False)
    model_type = models.CharField(max_length=60, blank=True, editable=False)
    class_name = models.CharField(max_length=120, blank=True, editable=False)
    causal = models.BooleanField(null=True, editable=False)
    n_layers = models.PositiveIntegerField(null=True, editable=False)
    d_model = models.PositiveIntegerField(null=True, editable=False)
    n_heads = models.PositiveIntegerField(null=True, editable=False)
    vocab_size = models.PositiveIntegerField(null=True, editable=False)
    context_length = models.PositiveIntegerField(null=True, editable=False)
    n_parameters = models.BigIntegerField(null=True, editable=False)
    dtype = models.CharField(max_length=20, blank=True, editable=False)
    # [{"name": "blocks.0.hook_resid_pre", "width": 192, "path": "model.layers.0", …}]; old rows have no path
    sites = models.JSONField(default=list, editable=False)
    files = models.JSONField(default=list, editable=False)  # [{"name", "bytes", "sha256"}]
    structure = models.JSONField(default=list, editable=False)  # jobs.ml.structure.Group as dictionaries
    licence = models.CharField(max_length=120, blank=True, editable=False)
    damaged = models.JSONField(default=dict, editable=False)  # file name → what the last verification found wrong
    verified_at = models.DateTimeField(null=True, editable=False)
    notes = models.TextField(blank=True)  # what people typed in; never shown as measured

    def site_width(self, site: str) -> int | None:
        """None where it is seen only when the model runs: of a module that is named by its path."""
        widths: dict[str, int] = {entry["name"]: entry["width"] for entry in self.sites}
        whole, _ = head_of(site) or ("", 0)
        return widths[whole] // self.n_heads if whole in widths and self.n_heads else widths.get(site)

    def why_no_site(self, name: str) -> str:
        """What is wrong with the name of a site. "" for those listed, their heads, and for any module: whether there
        is one of that path, and what it puts out, is seen when a job runs the model."""
        names = [entry["name"] for entry in self.sites]
        whole, head = head_of(name) or ("", 0)
        if name in names or module_of(name) or (whole in names and head < (self.n_heads or 0)):
            return ""
        if whole in names:
            return f"{whole} has heads 0 to {(self.n_heads or 0) - 1}."
        some = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        others = "One head is blocks.N.hook_z.H, any module module:<path>."
        return f"{self.name} has no site {name}. It has {some}. {suggestion(name, names) or others}"

    @cached_property
    def lost(self) -> dict[str, str]:
        """File name → what is wrong, of files that are gone or of another size. Looks into the folder, reads no
        file."""
        if not (self.ready and self.files):
            return {}
        found = whole.lost(self.folder, self.files)
        return found if (self.folder / whole.MADE).is_file() else {**found, whole.MADE: "is missing"}

    @property
    def state(self) -> str:
        """Beside what every artifact may be: missing or quarantined, until its files are what they were."""
        state = super().state
        return state if state != "ready" else "missing" if self.lost else "quarantined" if self.damaged else state

    def refusal(self) -> str:
        if self.state not in ("missing", "quarantined"):
            return super().refusal()
        found = self.lost or self.damaged
        said = ", ".join(f"{name} {wrong}" for name, wrong in list(found.items())[:3])
        return (
            f"The language model “{self.name}” is {self.state}: {said}. "
            f"Fetch it again on its page, or with “mistudio restore_model {self.name}”."
        )

    @classmethod
    def unusable(cls, team: Any) -> list[int]:
        rows = cls.objects.of_team(team).filter(ready_at__isnull=False).exclude(files=[])
        return [row.pk for row in rows.only("files", "damaged", "ready_at") if row.lost or row.damaged]

    @classmethod
    def offered(cls, team: Any, unusable: list[int]) -> models.QuerySet:
        return super().offered(team, unusable).exclude(pk__in=unusable)

    def begin(self, kind: str, owner: Any, **params: Any) -> Job:
        """Some work on this model that is not the making of it. Raises InvalidInput."""
        if not self.ready:
            raise InvalidInput(f"“{self.name}” is not ready.", "Wait for its job.")
        return submit(kind, params, team=self.team, owner=owner, subject=self.subject, title=self.name)

    def verify(self, owner: Any) -> Job:
        return self.begin("verify_model", owner, folder=str(self.folder), files=self.files)

    def restore(self, owner: Any) -> Job:
        """Fetch again what is damaged, at the commit that it was added at."""
        given = {"source": self.source, "revision": self.commit, "folder": str(self.folder), "files": self.files}
        return self.begin("restore_model", owner, **given)

    def measure(self, owner: Any, **params: Any) -> Job:
        if why := self.refusal():
            raise InvalidInput(why)
        return self.begin("measure_model", owner, model_folder=str(self.folder), **params)

    @classmethod
    def twin(cls, team: Any, source: str, revision: str) -> "LanguageModel | None":
        """The model of the same commit of the hub, here already or on its way. Of a branch only the job can say."""
        if is_path(source):
            return None
        rows: Any = cls.objects.of_team(team).filter(source=source).select_related("job").order_by("-pk")
        here = (row for row in rows if row.ready and revision and row.commit == revision)
        coming = (row for row in rows if not row.ready and row.revision == revision and row.job and row.job.unfinished)
        return next(here, None) or next(coming, None)

    def expected_files(self) -> dict[str, dict[str, Any]]:
        return {file["name"]: file for file in self.files}

    def params(self) -> dict[str, Any]:
        rows: Any = type(self).objects.of_team(self.team).filter(source=self.source, ready_at__isnull=False)
        known = dict(rows.exclude(commit="").exclude(pk=self.pk).values_list("commit", "name"))
        return {"source": self.source, "revision": self.revision, "folder": str(self.folder), "known": known}

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        return [self.source], {"revision": self.commit or self.revision}
