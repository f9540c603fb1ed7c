"""Room on the disk, asked for before a long write rather than found missing at its end."""

import errno
import re
import shutil
from pathlib import Path

UNITS = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**n for n, letter in enumerate("KMGT", 1)},
    **{f"{letter}IB": 1024**n for n, letter in enumerate("KMGT", 1)},
}
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


def parse_size(text: str) -> int:
    """Bytes, of what people write: 500 MB, 2 GiB, 1,000,000. Raises ValueError."""
    said = re.fullmatch(
        r"(\d{1,20}(?:\.\d{1,20})?)\s*([a-z]*)", text.replace(",", "").strip(), re.ASCII | re.IGNORECASE
    )
    if said is None or said[2].upper() not in UNITS:
        raise ValueError(f"“{text}” is no number of bytes. Write 500 MB, 2 GiB or 1000000.")
    return int(float(said[1]) * UNITS[said[2].upper()])
