"""The output of a job: everything its process printed, bounded, and safe to show."""

import os
import re
import time
from pathlib import Path

from jobs.models import Job

LIMIT = 4 * 2**20  # bytes; beyond it the oldest goes
KEPT = 2**20
ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{12,}")  # of the hub; whoever printed it, no page shows it
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def log_path(job: Job) -> Path:
    return job.folder / "log.txt"


def open_log(job: Job) -> int:
    """A descriptor to append to. Its first line says which attempt follows."""
    job.folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log_path(job), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(descriptor, f"--- attempt {job.attempt}, {time.strftime('%Y-%m-%d %H:%M:%S %Z')}\n".encode())
    return descriptor


def trim(path: Path, limit: int = LIMIT, kept: int = KEPT) -> None:
    """Cut the log to its last part while the job goes on appending to it."""
    try:
        size = path.stat().st_size
        if size <= limit:
            return
        with path.open("r+b") as file:
            file.seek(-kept, os.SEEK_END)
            tail = file.read(kept).split(b"\n", 1)[-1]
            # What the job appends between the read and the cut is lost; its next lines follow the tail.
            file.truncate(0)
        with path.open("ab") as file:
            file.write(f"--- {size - len(tail):,} bytes before this line were dropped\n".encode() + tail)
    except OSError:
        pass


def read_tail(path: Path, size: int = 2**16) -> str:
    """The last lines, cleaned. Empty when there is no log."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - size))
            raw = file.read(size)
    except OSError:
        return ""
    text = raw.decode(errors="replace")
    return clean(text if end <= size else text.partition("\n")[2])


def read_on(path: Path, at: int) -> tuple[str, int]:
    """What was printed since the byte `at`, cleaned, and the byte to go on from. A log that was cut starts anew."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(at if at <= end else 0)
            raw = file.read()
            return clean(raw.decode(errors="replace")), file.tell()
    except OSError:
        return "", at


def last_lines(path: Path, lines: int = 20) -> str:
    return "\n".join(read_tail(path).splitlines()[-lines:])


def clean(text: str) -> str:
    """As a terminal would leave it: no escapes, of a line that overwrites itself the last state; rest made visible."""
    lines = TOKEN.sub("hf_…", ANSI.sub("", text)).replace("\r\n", "\n").split("\n")
    finals = (line.rstrip("\r").rpartition("\r")[2] for line in lines)
    return "\n".join(UNSEEN.sub(lambda match: f"\\x{ord(match[0]):02x}", line) for line in finals)
