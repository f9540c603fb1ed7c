"""Files that people send from their browsers, chunk after chunk, until they become a dataset."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.db import models, transaction
from django.db.models import F, Sum
from django.utils import timezone

from jobs.errors import InvalidInput
from jobs.folders import strays
from jobs.ml.beginnings import check_beginning
from jobs.ml.disk import DiskFull, require_space
from jobs.ml.errors import Unusable
from jobs.ownership import Owned
from mistudio.formats import binary
from mistudio.models.artifact import folder_bytes
from mistudio.models.dataset import Dataset
from mistudio.models.sae import Sae
from mistudio.models.team import Team, User

ROOM = "uploads"
CHUNK = 4 * 2**20  # bytes in one request at most
HEAD = 2**16  # bytes by which a file is known again, beside its name, size and date
IDLE, TOTAL = timedelta(days=1), timedelta(days=7)
MOST_UNFINISHED = 10  # of one person
KEPT = 2**30  # bytes of the files of a dataset
NOTHING = hashlib.sha256().hexdigest()

# Hashes that go on with the next chunk, by upload; the others are computed from what lies on the disk.
hashes: "OrderedDict[int, tuple[int, Any]]" = OrderedDict()
MOST_HASHES = 32


class Refused(Exception):
    """Something that is not taken, in words for the person; `status` is that of HTTP."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class Upload(Owned):
    """One file. `received` bytes of it are on the disk for certain, and `sha256` is theirs."""

    name = models.CharField(max_length=200)
    size = models.BigIntegerField()
    modified = models.BigIntegerField(default=0)  # ms since 1970, as the browser says
    head = models.CharField(max_length=64)  # sha256 of its first HEAD bytes
    received = models.BigIntegerField(default=0)
    sha256 = models.CharField(max_length=64, default=NOTHING)
    touched_at = models.DateTimeField(default=timezone.now, db_index=True)
    dataset = models.ForeignKey(Dataset, on_delete=models.SET_NULL, null=True, related_name="uploads")

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path:
        return settings.MISTUDIO_DATA / ROOM / str(self.pk)

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def whole(self) -> bool:
        return self.received == self.size

    @property
    def percent(self) -> float:
        return 100 * self.received / self.size

    @property
    def kept_until(self) -> datetime:
        return min(self.touched_at + IDLE, self.created_at + TOTAL)

    @classmethod
    def begin(cls, team: Team, owner: User, name: str, size: int, head: bytes, modified: int | None = None) -> "Upload":
        """The upload that this person began of the same file, as far as its beginning and date tell; else, and without
        a date, a new one of which nothing is here yet. Raises Refused."""
        mark: dict[str, Any] = {
            "name": leaf(name),
            "size": size,
            "head": hashlib.sha256(head).hexdigest(),
            "modified": modified or 0,
        }
        try:
            check_size(mark["name"], size)
            check_beginning(head, mark["name"])
            with transaction.atomic():
                # Of two at once neither begins the same file again nor takes what the other leaves of a quota.
                Team.objects.select_for_update().get(pk=team.pk)
                begun = cls.begun(team, owner, mark) if modified is not None else None
                return begun or cls.made(team, owner, mark)
        except Unusable as unusable:
            raise Refused(f"{unusable} {unusable.hint}".strip(), 415) from unusable
        except OSError as error:
            raise disk_says(error) from error

    @classmethod
    def begun(cls, team: Team, owner: User, mark: dict[str, Any]) -> "Upload | None":
        rows = cls.objects.of_team(team).filter(owner=owner, **mark)
        return next((row for row in rows if row.path.exists() and timezone.now() < row.kept_until), None)

    @classmethod
    def made(cls, team: Team, owner: User, mark: dict[str, Any]) -> "Upload":
        check_room(team, owner, mark["name"], mark["size"])
        row = cls.objects.create(team=team, owner=owner, **mark)
        shutil.rmtree(row.folder, ignore_errors=True)  # a database that lost its last rows gives their numbers again
        row.folder.mkdir(parents=True)
        row.path.touch()
        return row

    def append(self, offset: int, chunk: bytes, sha256: str = "") -> None:
        """Take the next bytes; `sha256` is that of the file from its start to their end. Raises Refused.

        They are on the disk before the row counts them; what a killed process wrote and did not count is written over.
        """
        with self.alone() as file:
            if offset != self.received:
                raise Refused(f"{binary(self.received)} of {self.name} are here.", 409)
            if not chunk or offset + len(chunk) > self.size:
                raise Refused(f"{self.name} has {self.size:,} bytes; this part goes on to {offset + len(chunk):,}.")
            so_far = self.hashed(file)
            so_far.update(chunk)
            if sha256 and so_far.hexdigest() != sha256:
                hashes.pop(self.pk, None)
                raise Refused(f"A part of {self.name} was changed on its way, or the file is another one.", 422)
            if offset == 0:
                self.check_content(chunk)
            write(file, offset, chunk)
            self.count(offset + len(chunk), so_far)

    @contextmanager
    def alone(self) -> Iterator[IO[bytes]]:
        """The file, while nobody else, in whatever process, writes to it; the row as it is now."""
        try:
            with self.path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self.refresh_from_db()
                if os.fstat(file.fileno()).st_size < self.received:
                    raise FileNotFoundError(f"{self.path} was cut off")
                yield file
        except (FileNotFoundError, Upload.DoesNotExist) as gone:
            raise Refused("This upload is no longer here: it was deleted, or too old. Begin again.", 410) from gone
        except OSError as error:
            raise disk_says(error) from error

    def hashed(self, file: IO[bytes]) -> Any:
        """The hash of what was received, to go on with."""
        at, known = hashes.get(self.pk, (0, hashlib.sha256()))
        if at > self.received:
            at, known = 0, hashlib.sha256()
        known = known.copy()
        file.seek(at)
        while at < self.received:
            part = file.read(min(CHUNK, self.received - at))
            known.update(part)
            at += len(part)
        return known

    def check_content(self, chunk: bytes) -> None:
        try:
            check_beginning(chunk, self.name)
        except Unusable as unusable:
            raise Refused(f"{unusable} {unusable.hint}".strip(), 415) from unusable

    def count(self, received: int, so_far: Any) -> None:
        now, sha256 = timezone.now(), so_far.hexdigest()
        rows = Upload.objects.filter(pk=self.pk, received=self.received)
        if not rows.update(received=received, sha256=sha256, touched_at=now):
            raise Upload.DoesNotExist
        self.received, self.sha256, self.touched_at = received, sha256, now
        hashes.pop(self.pk, None)
        if not self.whole:
            hashes[self.pk] = (received, so_far)
        if len(hashes) > MOST_HASHES:
            hashes.popitem(last=False)

    def delete_with_file(self) -> None:
        """The row goes first: a crash in between leaves a folder without a row, which `sweep` removes."""
        folder = self.folder
        hashes.pop(self.pk, None)
        with transaction.atomic():
            self.delete()
            transaction.on_commit(lambda: shutil.rmtree(folder, ignore_errors=True))


def leaf(name: str) -> str:
    """A safe file name: the last part of a path of any system, printable, short, and not hidden."""
    name = re.split(r"[/\\]", name)[-1]
    name = "".join(c if c.isprintable() else "_" for c in name).strip().lstrip(".")
    return name.encode()[-180:].decode(errors="ignore").lstrip(".") or "file"


def check_size(name: str, size: int) -> None:
    if size < 1:
        raise Refused(f"{name} is empty.")
    if size > settings.UPLOAD_LIMIT:
        raise Refused(
            f"{name} has {binary(size)}; at most {binary(settings.UPLOAD_LIMIT)} can be uploaded. "
            "Put it on the machine that runs miStudio, and give its path.",
            413,
        )


def check_room(team: Team, owner: User, name: str, size: int) -> None:
    """Raises Refused, DiskFull."""
    unfinished = Upload.objects.of_team(team).filter(owner=owner, received__lt=F("size")).count()
    if unfinished >= MOST_UNFINISHED:
        raise Refused(f"{unfinished} of your uploads are unfinished. Finish or delete one of them first.", 429)
    kept = kept_bytes(team)
    if size > (left := quota_left(team, kept)):
        held = f" ({binary(kept)} are kept by datasets for their labels, or by imports that failed)" if kept else ""
        raise Refused(
            f"{name} has {binary(size)}, but of your team's {binary(settings.UPLOAD_QUOTA)} for uploads only "
            f"{binary(left)} are free{held}. Delete an upload{' or one of those' if kept else ''}, or give a path as "
            "the source.",
            413,
        )
    promised = Upload.objects.aggregate(bytes=Sum(F("size") - F("received")))["bytes"] or 0
    require_space(settings.MISTUDIO_DATA, size + promised, f"{name}, with what other uploads still need,")


def quota_left(team: Team, kept: int) -> int:
    """kept: see kept_bytes."""
    used = Upload.objects.of_team(team).aggregate(bytes=Sum("size"))["bytes"] or 0
    return max(0, settings.UPLOAD_QUOTA - used - kept)


def kept_bytes(team: Team) -> int:
    """Of what was uploaded for datasets and SAEs and lies with them still: each file once, however many link to it, and
    none that an upload counts."""
    datasets, saes = Dataset.objects.of_team(team).exclude(uploaded=[]), Sae.objects.of_team(team).exclude(uploaded="")
    folders = [dataset.upload_folder for dataset in datasets] + [sae.upload_folder for sae in saes]
    kept = sizes(path for folder in folders for path in folder.glob("*"))
    counted = sizes(upload.path for upload in Upload.objects.of_team(team))
    return sum(size for inode, size in kept.items() if inode not in counted)


def sizes(paths: Iterable[Path]) -> dict[tuple[int, int], int]:
    """By inode, of the files that are there."""
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):
            seen = path.stat()
            found[seen.st_dev, seen.st_ino] = seen.st_size
    return found


def write(file: IO[bytes], offset: int, chunk: bytes) -> None:
    descriptor, rest = file.fileno(), memoryview(chunk)
    os.ftruncate(descriptor, offset)
    try:
        while rest:
            rest = rest[os.pwrite(descriptor, rest, offset + len(chunk) - len(rest)) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, offset)
        raise


def disk_says(error: OSError) -> Refused:
    if isinstance(error, DiskFull):
        return Refused(str(error), 507)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    said = "The disk where miStudio keeps its data is full" if full else f"The disk refuses: {error.strerror or error}"
    return Refused(f"{said}. What was received is kept; make room there, and go on.", 507)


def hand_over(uploads: Iterable[Upload], names: Iterable[str], folder: Path) -> None:
    """Links to the files under these names in a folder of the one that is made of them, so that it can be tried again
    when the uploads are swept away.

    Raises InvalidInput for a file that is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for upload, name in zip(uploads, names, strict=True):
        try:
            link_or_copy(upload.path, folder / name)
        except OSError as error:
            said = f"{upload.name} cannot be taken over: {error.strerror or error}."
            raise InvalidInput(said, "Choose it again.", "uploads") from error


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # no links on this file system
        shutil.copyfile(source, target)


def used_up(dataset: Dataset, columns: int) -> None:
    """The text of a finished dataset is in its Parquet files: what was uploaded for it goes. The dataset's own links to
    small files stay where these have more columns than that of the text: labels are read from them."""
    for upload in dataset.uploads.all():
        upload.delete_with_file()
    if columns < 2 or folder_bytes(dataset.upload_folder) > KEPT:
        shutil.rmtree(dataset.upload_folder, ignore_errors=True)


def sweep() -> list[str]:
    """Remove uploads that nobody goes on with, and folders without a row. Returns the names of the uploads."""
    now = timezone.now()
    old = models.Q(touched_at__lt=now - IDLE) | models.Q(created_at__lt=now - TOTAL)
    swept = list(Upload.objects.filter(old))
    for upload in swept:
        upload.delete_with_file()
    for folder in strays(settings.MISTUDIO_DATA / ROOM, set(Upload.objects.values_list("pk", flat=True))).folders:
        shutil.rmtree(folder, ignore_errors=True)
    return [upload.name for upload in swept]
