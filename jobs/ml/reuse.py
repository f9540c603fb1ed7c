"""Files that this machine has already, taken instead of fetched: from other models here and from the cache of the hub's
own client. What is taken is read and compared first. It is cloned where the filesystem can; else linked, and read-only
from then on where both are miStudio's, as what is written into one is written into both; else it is copied.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from huggingface_hub import constants

from jobs.ml.disk import require_space
from jobs.ml.hub import HubFile, is_sound
from jobs.ml.store import read_json, replacing

FICLONE = 0x40049409  # of Linux: both share their blocks until one of them is written to


def candidates(file: HubFile, folder: Path) -> Iterator[Path]:
    """Files that should have the content of `file`; `folder` is the one that it is for, beside those of others."""
    if file.size is None or not (file.sha256 or file.blob):
        return
    for manifest in sorted(folder.parent.glob("*/manifest.json")):
        if manifest.parent != folder:
            yield from (manifest.parent / name for name in named_in(manifest, file))
    yield from Path(constants.HF_HUB_CACHE).glob(f"*/blobs/{file.sha256 or file.blob}")


def named_in(manifest: Path, file: HubFile) -> list[str]:
    try:
        files = read_json(manifest)["files"]
        alike = [entry for entry in files if entry["bytes"] == file.size and file.sha256 in ("", entry["sha256"])]
        return [str(entry["name"]) for entry in alike]
    except (OSError, ValueError, KeyError, TypeError):  # of an object that is just being deleted, or of an older form
        return []


def take(file: HubFile, folder: Path, check: Callable[[], None]) -> bool:
    """Whether `folder` has the file now. A copy raises DiskFull where there is no room."""
    for path in candidates(file, folder):
        try:
            sound = path.is_file() and path.stat().st_size == file.size and is_sound(path, file, lambda n: check())
        except OSError:  # not ours to read, or gone meanwhile
            continue
        if sound:
            bring(path.resolve(), folder / file.name)
            return True
    return False


def bring(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        if not clone(source, temporary):
            link_or_copy(source, temporary)
    for stale in target.parent.glob(f".{target.name}.*.partial"):
        stale.unlink()


def clone(source: Path, target: Path) -> bool:
    """Whether it could be done: on Btrfs, XFS and some others."""
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            fcntl.ioctl(writer, FICLONE, reader.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        return False
    return True


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        require_space(target.parent, source.stat().st_size, target.name)
        shutil.copyfile(source, target)
        return
    if source.parent.parent == target.parent.parent:  # the modes of other people's files are theirs
        with contextlib.suppress(OSError):
            target.chmod(0o444)
