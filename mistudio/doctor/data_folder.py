import os
import shutil
from collections.abc import Iterator

from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning
from django.db import connection

from jobs.doctor import counted, examines
from jobs.ml.disk import size
from jobs.probes import unwritable
from mistudio.models import HubToken
from monitoring.probe import mount_of

LITTLE, LOW = 10**9, 10**10  # bytes that are free: a problem, a warning
SHORTEST_KEY = 50
# SQLite's write-ahead log lives in memory that its processes share: there is none between machines.
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "beegfs", "gpfs", "glusterfs"}
NETWORK |= {f"fuse.{name}" for name in ("ceph", "glusterfs", "sshfs", "s3fs", "rclone")}
FLEETING = {
    "tmpfs": "in memory: all is lost when the machine restarts",
    "ramfs": "in memory: all is lost when the machine restarts",
    "overlay": "in the layers of a container: all is lost with it",
}


@examines("data-folder")
def data_folder() -> Iterator[CheckMessage]:
    folder = settings.MISTUDIO_DATA
    if why := unwritable(folder):
        hint = f"Give the user of this process the folder, or make room: {folder}"
        yield Error(f"MISTUDIO_DATA cannot be written: {why}.", hint=hint)
    _, kind = mount_of(folder)
    yield from of_file_system(kind, connection.vendor)
    disk = shutil.disk_usage(folder)
    yield of_room(disk.free, disk.total)


def of_file_system(kind: str, vendor: str) -> Iterator[CheckMessage]:
    if kind in NETWORK and vendor == "sqlite":
        yield Error(
            f"The SQLite database lies on a network file system ({kind}), where it can be damaged.",
            hint="Set DATABASE_URL to a PostgreSQL server, or MISTUDIO_DATA to a folder on a disk of this machine.",
        )
    elif kind in FLEETING:
        yield Warning(f"MISTUDIO_DATA lies {FLEETING[kind]} ({kind}).", hint="Set it to a folder on a disk or volume.")
    else:
        yield Info(f"{settings.MISTUDIO_DATA} is on {kind}.")


def of_room(free: int, total: int) -> CheckMessage:
    said = f"{size(free)} of {size(total)} are free."
    if free >= LOW:
        return Info(said)
    hint = "Make room: evict caches, or delete what is not needed, on the pages of miStudio."
    return (Error if free < LITTLE else Warning)(f"Only {said}", hint=hint)


@examines("secrets")
def secrets() -> Iterator[CheckMessage]:
    found = [*of_key(), *of_tokens()]
    yield from found
    if not found:
        yield Info("The secret key is kept from others, and opens all that it has sealed.")


def of_key() -> Iterator[CheckMessage]:
    path = settings.MISTUDIO_DATA / "secret_key"
    if os.environ.get("MISTUDIO_SECRET_KEY"):
        if (letters := len(settings.SECRET_KEY)) < SHORTEST_KEY:
            said = f"MISTUDIO_SECRET_KEY has {letters} letters: who guesses it can sign in as anybody."
            yield Warning(said, hint=f"Give at least {SHORTEST_KEY} random ones; everyone must sign in again then.")
    elif (mode := path.stat().st_mode & 0o777) & 0o077:
        said = f"Others on this machine can read {path} (mode {mode:o}), and with it sign in as anybody."
        yield Error(said, hint=f"Run: chmod 600 {path}")


def of_tokens() -> Iterator[CheckMessage]:
    lost = [token for token in HubToken.objects.all() if not token.readable]
    if lost:
        said = f"{counted(len(lost), 'token')} of the hub cannot be read: the secret key has changed."
        yield Warning(said, hint="Bring the old key back, or have the tokens stored again on the account pages.")
