"""Folders that no row names: what a crash between the row and its files leaves, or a database that was set back."""

import time
from dataclasses import dataclass
from pathlib import Path

YOUNG = 3600.0  # seconds: its row may just be made, or its files just be deleted
SHOWN = 5


@dataclass(frozen=True)
class Strays:
    folders: list[Path]

    def __bool__(self) -> bool:
        return bool(self.folders)

    @property
    def bytes(self) -> int:
        """On the disk, whatever can be read of them."""
        return sum(bytes_of(folder) for folder in self.folders)

    @property
    def shown(self) -> str:
        more = f" and {len(self.folders) - SHOWN} more" if len(self.folders) > SHOWN else ""
        return " ".join(map(str, self.folders[:SHOWN])) + more


def strays(room: Path, keys: set[int]) -> Strays:
    """Those of the room with a number that is none of the keys, the young ones left out."""
    folders = [path for path in room.glob("*") if path.name.isdecimal() and int(path.name) not in keys]
    return Strays(sorted(path for path in folders if path.is_dir() and is_old(path)))


def is_old(folder: Path) -> bool:
    """Not if it is deleted in this moment."""
    try:
        return folder.stat().st_mtime < time.time() - YOUNG
    except FileNotFoundError:
        return False


def bytes_of(folder: Path) -> int:
    return sum(size_of(path) for path in folder.rglob("*"))


def size_of(path: Path) -> int:
    try:
        return path.lstat().st_size if path.is_file() else 0
    except OSError:
        return 0
