import shutil
from pathlib import Path
from typing import Any, ClassVar

from django.conf import settings
from django.db import models, transaction

from jobs.ml import formats
from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.architectures.options import OPTIONS
from mistudio.formats import thousands
from mistudio.models.artifact import Artifact
from mistudio.models.language_model import LanguageModel
from mistudio.models.training import Training

# What an architecture is once it is trained and folded, where that is another one.
FOLDED = {
    "batchtopk": "jumprelu", "matryoshka": "jumprelu", "p_anneal": "standard", "transcoder": "topk",
    "skip_transcoder": "topk",
}  # fmt: skip


class Sae(Artifact):
    """A sparse autoencoder, trained here or imported, folded, with what was measured of it on held-out tokens."""

    NOUN, ROOM, KIND = "SAE", "saes", "train_sae"
    BUILT_ON = ("language_model",)

    training = models.ForeignKey(Training, on_delete=models.PROTECT, null=True, blank=True, related_name="saes")
    number = models.PositiveIntegerField(default=0, editable=False)  # of the training's SAEs, from 0
    language_model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="saes")
    reads = models.JSONField(default=list)  # its sites; several of a crosscoder
    writes = models.JSONField(default=list, blank=True)  # of a transcoder: the site that it rebuilds
    architecture = models.CharField(max_length=20)
    d_in = models.PositiveIntegerField()
    width = models.PositiveIntegerField()
    options = models.JSONField(default=dict, blank=True)  # of its architecture
    # Of one that was imported: where from, and what its files say (see the result of jobs.kinds.import_sae).
    source = models.CharField(max_length=1000, blank=True)  # a hub id, a path, or the name of an uploaded archive
    path = models.CharField(max_length=500, blank=True)
    revision = models.CharField(max_length=120, blank=True)
    uploaded = models.CharField(max_length=200, blank=True, editable=False)  # name of the file in upload_folder
    commit = models.CharField(max_length=64, blank=True, editable=False)
    licence = models.CharField(max_length=120, blank=True)
    imported = models.JSONField(default=dict, editable=False)
    # On `evaluated_tokens` held-out tokens; None is "not measured".
    fvu = models.FloatField(null=True, editable=False)
    l0 = models.FloatField(null=True, editable=False)
    ce_recovered = models.FloatField(null=True, editable=False)
    evaluated_tokens = models.BigIntegerField(null=True, editable=False)
    metrics = models.JSONField(default=dict, editable=False)
    # The one that measured the features as they are now; none before the first, and while one is being taken over.
    scan = models.ForeignKey("Scan", on_delete=models.SET_NULL, null=True, editable=False, related_name="+")

    class Meta(Artifact.Meta):
        verbose_name = "SAE"
        constraints: ClassVar[list[models.BaseConstraint]] = [
            *Artifact.Meta.constraints,
            models.UniqueConstraint(fields=["training", "number"], name="sae_number_once_per_training"),
        ]

    @property
    def site(self) -> str:
        """What it reads and, where that is something else, what it writes."""
        return " → ".join(" + ".join(side) for side in (self.reads, self.writes) if side)

    @property
    def rebuilds(self) -> tuple[str, ...]:
        """The sites. Explained variance is compared among those that rebuild the same: of other sites, other things
        are hard."""
        return tuple(self.writes or self.reads)

    def placed(self) -> dict[str, Any]:
        """Where it stands, for jobs that run it in its language model."""
        folders = {"model_folder": str(self.language_model.folder), "sae_folder": str(self.folder)}
        return {**folders, "reads": self.reads, "writes": self.writes}

    @property
    def label(self) -> str:
        known = ARCHITECTURES.get(self.architecture)
        return known.label if known else self.architecture

    @property
    def options_said(self) -> list[tuple[str, int | float | str]]:
        """Labels of the options of its architecture, with their values."""
        return [(OPTIONS[name].label, value) for name, value in self.options.items() if name in OPTIONS]

    @property
    def options_briefly(self) -> str:
        """The first, which decides how sparse it is, and those that are not the architecture's presets."""
        presets = ARCHITECTURES[self.architecture].presets if self.architecture in ARCHITECTURES else {}
        own = [name for n, name in enumerate(self.options) if n == 0 or presets.get(name) != self.options[name]]
        return ", ".join(f"{OPTIONS[name].label} {self.options[name]}" for name in own if name in OPTIONS)

    @property
    def foreign(self) -> bool:
        return bool(self.source)

    @property
    def kind(self) -> str:
        return "import_sae" if self.foreign else self.KIND

    @property
    def explained_variance(self) -> float | None:
        return None if self.fvu is None else 1 - self.fvu

    @property
    def room(self) -> Path:
        """What belongs to this row alone."""
        return settings.MISTUDIO_DATA / self.ROOM / str(self.pk)

    @property
    def folder(self) -> Path:
        """A training writes its SAE into its own folder, before there is a row."""
        return self.training.sae_folder(self.number) if self.training else self.room / "sae"

    @property
    def upload_folder(self) -> Path:
        return self.room / "upload"

    @property
    def folded_as(self) -> str:
        """The architecture of what lies in the folder."""
        return FOLDED.get(self.architecture, self.architecture)

    @property
    def data_origin(self) -> str:
        """The text that it was trained on, as others can find it."""
        return self.training.tokenization.dataset.origin if self.training else self.imported.get("dataset", "")

    @property
    def wished(self) -> dict[str, Any]:
        """Of what the import was asked for: the sites, where a person chose them."""
        return self.imported.get("wished", {})

    def params(self) -> dict[str, Any]:
        """Of an import. A training makes its SAE itself."""
        return {
            "source": str(self.upload_folder / self.uploaded) if self.uploaded else self.source,
            "path": self.path,
            "revision": self.revision,
            "folder": str(self.folder),
            "reads": self.wished.get("reads", []),
            "writes": self.wished.get("writes", []),
            "widths": {entry["name"]: entry["width"] for entry in self.language_model.sites},
            "model_name": self.language_model.source,
        }

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        source = f"./{self.uploaded}" if self.uploaded else self.source
        return [source], {
            "path": self.path,
            "revision": self.commit or self.revision,
            "language-model": self.language_model.name,
            "site": ",".join(self.reads),
            "writes": ",".join(self.writes),
            "licence": self.licence,
        }

    def command(self) -> str:
        return self.training.command() if self.training else super().command() if self.foreign else ""

    def measured(self) -> list[list[str]]:
        """What, how much, and on what: for people elsewhere."""
        on = f"{thousands(self.evaluated_tokens)} held-out tokens" if self.evaluated_tokens else "held-out tokens"
        tokens = self.metrics.get("ce_tokens")
        ce_on = f"{thousands(tokens)} held-out tokens" if tokens else on
        rows = [
            ("Explained variance", self.explained_variance, "{:.4f}", on),
            ("L0", self.l0, "{:.2f}", on),
            ("Cross-entropy recovered, against zero ablation", self.ce_recovered, "{:.4f}", ce_on),
        ]
        return [[name, form.format(value), where] for name, value, form, where in rows if value is not None]

    def about(self) -> dict[str, Any]:
        """What a model card says of it: see jobs.ml.formats.card."""
        return {
            "name": self.name,
            "model": self.imported.get("model_name") or self.language_model.source,
            "dataset": self.data_origin,
            "reads": self.reads,
            "writes": self.writes,
            "architecture": self.label,
            "d_in": self.d_in,
            "width": self.width,
            "k": self.options.get("k"),
            "l0": self.l0,
            "context_size": self.training.tokenization.context_length
            if self.training
            else self.imported.get("context_size"),
            "licence": self.licence,
            "metrics": self.measured(),
        }

    def export_refusal(self, format: str) -> str:
        """Why it cannot be exported in this format, "" where it can."""
        if format == formats.NEURONPEDIA:
            return "" if self.scan_id else "Scan its features first: the files hold what a scan found."
        d_out = self.imported.get("d_out") or (self.language_model.site_width(self.writes[0]) if self.writes else 0)
        return formats.refusal(format, self.folded_as, transcodes=bool(self.writes), d_in=self.d_in, d_out=d_out or 0)

    def delete_with_files(self) -> None:
        room = self.room
        super().delete_with_files()
        transaction.on_commit(lambda: shutil.rmtree(room, ignore_errors=True))
