from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Coalesce
from django.utils import timezone

from jobs.errors import InvalidInput
from jobs.ml.cache_layout import cache_bytes
from jobs.ml.disk import DiskFull, require_space, size
from jobs.ml.store import read_json_if_there
from jobs.models import Job, State
from mistudio.models.artifact import Artifact, InUse
from mistudio.models.language_model import AUTO, RUN_PRECISIONS, LanguageModel, Precision
from mistudio.models.tokenization import Tokenization

SMALLER = "Read fewer tokens, choose fewer sites or a smaller type."
USED_EVERY = timedelta(minutes=1)


class ActivationCache(Artifact):
    """Activations of some sites on disk: computed once, read by any number of trainings. Its files can be evicted, and
    made again with one click."""

    NOUN, ROOM, KIND = "activation cache", "caches", "cache_activations"
    BUILT_ON = ("language_model",)

    class Stored(models.TextChoices):
        BFLOAT16 = "bfloat16", "bfloat16, 2 bytes"
        FLOAT16 = "float16", "float16, 2 bytes"
        FLOAT32 = "float32", "float32, 4 bytes"
        INT8 = "int8", "int8 with a scale for each token, 1 byte"

    class Split(models.TextChoices):
        TRAIN = "train", "to train on"
        HELD_OUT = "held_out", "held out"

    language_model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="activation_caches")
    tokenization = models.ForeignKey(Tokenization, on_delete=models.PROTECT, related_name="activation_caches")
    sites = models.JSONField(default=list)  # names, in the order of the forward pass
    split = models.CharField(max_length=20, choices=Split.choices, default=Split.TRAIN)
    n_tokens = models.BigIntegerField(help_text="Tokens to read, special ones included.")
    stored = models.CharField(max_length=20, choices=Stored.choices, default=Stored.BFLOAT16)
    skip_special = models.BooleanField(default=True)
    dtype = models.CharField("precision", max_length=20, choices=RUN_PRECISIONS, default=Precision.FLOAT32)
    model_batch = models.PositiveIntegerField(
        null=True, blank=True
    )  # sequences per forward pass; None: as many as a short trial shows to be fastest
    n_stored = models.BigIntegerField(null=True, editable=False)  # tokens that were kept of those
    tokens_per_second = models.FloatField(null=True, editable=False)  # as measured when it was made
    result = models.JSONField(default=dict, editable=False)
    used_at = models.DateTimeField(null=True, editable=False)
    evicted_at = models.DateTimeField(null=True, editable=False)

    @property
    def state(self) -> str:
        if self.evicted and not (self.job and self.job.unfinished):
            return "evicted"
        return super().state

    @property
    def evicted(self) -> bool:
        return self.evicted_at is not None and not self.ready

    @property
    def computed_in(self) -> str:
        """The precision of the language model, once it is settled: made again, it is the same."""
        return self.result.get("dtype") or (self.dtype if self.dtype != AUTO else "")

    def params(self) -> dict[str, Any]:
        from jobs.ml.store import fingerprint  # late: it needs numpy

        model = self.language_model
        files = sorted([file["name"], file.get("sha256") or ""] for file in model.files)
        return {
            "model_folder": str(self.language_model.folder),
            "tokens_folder": str(self.tokenization.folder),
            "folder": str(self.folder),
            "sites": list(self.sites),
            "tokens": self.n_tokens,
            "split": self.split,
            "stored": self.stored,
            "skip_special": self.skip_special,
            "model_identity": fingerprint(files or [[model.source, model.commit]]),
            "dtype": self.computed_in or AUTO,
            "model_batch": self.result.get("model_batch") or self.model_batch,
        }

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        return [self.tokenization.name], {
            "sites": ",".join(self.sites),
            "split": self.split if self.split != "train" else "",
            "tokens": self.n_tokens,
            "stored": self.stored,
            "skip-special": "" if self.skip_special else "False",
            "dtype": self.dtype,
            "model-batch": self.model_batch,
        }

    # ---- sizes

    @property
    def widths(self) -> list[int]:
        return [self.language_model.site_width(site) or 0 for site in self.sites]

    @property
    def needed_bytes(self) -> int:
        """On disk, at most: as if no token were special."""
        return cache_bytes(self.widths, self.stored, self.n_tokens)

    # ---- use and eviction

    @property
    def made_by(self) -> dict[str, Any]:
        """What decides, beside the text, whether activations of two caches are of one kind: as the files say it."""
        plan = read_json_if_there(self.folder / "manifest.json").get("plan", {})
        return {
            "weights of the language model": plan.get("model"),
            "precisions of the language model": plan.get("dtype"),
            "choices of special tokens": "left out" if self.skip_special else "stored too",
        }

    def unfit(self, tokenization: Tokenization, site: str) -> str:
        """Why an SAE of this site cannot be trained from it on this text; nothing where it can."""
        if self.evicted:
            return f"“{self.name}” was evicted. Make it again on its page, or compute the activations while it trains."
        if not self.ready:
            return f"“{self.name}” is not finished. Wait for its job, or compute the activations while it trains."
        if self.language_model_id != tokenization.language_model_id:
            return f"“{self.name}” holds activations of {self.language_model}, not of {tokenization.language_model}."
        if self.tokenization.dataset_id == tokenization.dataset_id and not self.tokenization.holds_out_as(tokenization):
            return (
                f"“{self.name}” may hold what “{tokenization}” holds out to measure on: both are of the same dataset, "
                "with another seed or another part held out."
            )
        if self.split != self.Split.TRAIN:
            return f"“{self.name}” holds the held-out part, which is never trained on."
        if site not in self.sites:
            return f"“{self.name}” has no activations of {site}. It has {', '.join(self.sites)}."
        return ""

    def touch(self) -> None:
        """It is used now. Written once a minute at most."""
        now = timezone.now()
        rows = ActivationCache.objects.filter(Q(used_at=None) | Q(used_at__lt=now - USED_EVERY), pk=self.pk)
        rows.update(used_at=now)

    def busy_with(self) -> list[str]:
        """The unfinished jobs that write or read its files, in words."""
        own = [f"its unfinished job {self.job.pk}"] if self.job and self.job.unfinished else []
        return own + [run.spoken() for run in self.trainings.filter(job__state__in=State.unfinished())[:20]]

    def evict(self) -> None:
        """Deletes the files and keeps the row. Raises InUse."""
        from jobs.ml.store import remove  # late: it needs numpy

        with transaction.atomic():
            if busy := self.busy_with():
                raise InUse(self, busy)
            self.ready_at, self.evicted_at, self.size_bytes = None, timezone.now(), None
            self.save()
            folder = self.folder
            transaction.on_commit(lambda: remove(folder))

    def mark_ready(self, **fields: Any) -> None:
        super().mark_ready(evicted_at=None, used_at=self.used_at or timezone.now(), **fields)

    def start(self) -> Job:
        """Raises InvalidInput where it does not fit, even after others were evicted."""
        if not self.ready:
            for victim in self.victims():
                victim.evict()
        return super().start()

    def victims(self) -> "list[ActivationCache]":
        """What has to go so that this one stays within the quota. Raises InvalidInput where that is not enough for the
        quota, or for the disk."""
        victims = self.over_quota()
        freed = sum(victim.size_bytes or 0 for victim in victims)
        try:
            needed = self.needed_bytes - freed - folder_size(self.folder)
            require_space(settings.MISTUDIO_DATA, max(0, needed), "The cache")
        except DiskFull as full:
            raise InvalidInput(str(full), SMALLER, "n_tokens") from full
        return victims

    def over_quota(self) -> "list[ActivationCache]":
        """The caches of the team, least recently used first, until this one fits. Raises InvalidInput where it does
        not."""
        quota = settings.CACHE_QUOTA_BYTES
        if not quota:
            return []
        others = ActivationCache.objects.of_team(self.team).exclude(pk=self.pk)
        under_way = others.filter(ready_at=None, job__state__in=State.unfinished())
        held = others.aggregate(n=models.Sum("size_bytes"))["n"] or 0
        held += sum(cache.needed_bytes for cache in under_way.select_related("language_model"))
        found, over = [], held + self.needed_bytes - quota
        for cache in least_used(others):
            if over <= 0:
                break
            found.append(cache)
            over -= cache.size_bytes or 0
        if over > 0:
            raise InvalidInput(
                f"The cache needs {size(self.needed_bytes)}, which is {size(over)} more than the quota of "
                f"{size(quota)} for a team leaves, with everything evicted that no job uses.",
                SMALLER,
                "n_tokens",
            )
        return found


def least_used(rows: Any) -> "QuerySet[ActivationCache]":
    """Those that may be evicted, the one whose last use is longest ago first."""
    idle = rows.filter(ready_at__isnull=False).exclude(job__state__in=State.unfinished())
    busy = Q(trainings__job__state__in=State.unfinished())
    used: QuerySet[ActivationCache] = idle.exclude(pk__in=rows.filter(busy).values("pk")).order_by(
        Coalesce("used_at", "ready_at"), "pk"
    )
    return used.select_related("job")


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
