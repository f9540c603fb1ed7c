"""Room on the disk, asked for before a long write rather than found missing at its end."""

import errno
import shutil
from pathlib import Path

RESERVE = 64 * 2**20  # left for the database and the logs, which share the disk


class DiskFull(OSError):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.ENOSPC


def require_space(folder: Path, needed: int, what: str, where: str = "where miStudio keeps its data") -> None:
    """Raises DiskFull, with figures, where `needed` bytes do not fit into `folder`, existing or not."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if (missing := needed + RESERVE - free) > 0:
        raise DiskFull(
            f"{what} needs {size(needed)}, but only {size(free)} are free {where}: "
            f"{size(missing)} are missing, {size(RESERVE)} for the rest of miStudio included."
        )


def size(n: float) -> str:
    if n < 1000:
        return f"{n:.0f} bytes"
    power = next((power for power in (1, 2, 3) if n < 1000 ** (power + 1)), 4)
    return f"{n / 1000**power:,.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"
