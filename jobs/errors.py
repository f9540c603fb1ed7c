"""How a job can end badly, in words that say what to do next. Knows no Django: kinds and their tests import it."""

import errno
import re
from dataclasses import dataclass, field
from typing import Any

AGAIN = {"label": "Try again", "overrides": {}}


class Cancelled(Exception):
    """The user asked the job to end."""


class Paused(Exception):
    """The user asked the job to rest; it goes on from its checkpoint."""


class Stopped(Exception):
    """The worker shuts down; the job goes on from its checkpoint with another one."""


class InvalidInput(ValueError):
    """Something a person gave is wrong. `field` names the parameter."""

    def __init__(self, message: str, hint: str = "", field: str = "") -> None:
        self.message, self.hint, self.field = message, hint, field
        super().__init__(message)


class JobError(Exception):
    """A kind raises this when it knows better than `classify` what happened."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        if code not in HINTS:
            raise ValueError(f"{code} is not an error code: {', '.join(HINTS)}")
        self.code, self.message, self.hint = code, message, hint
        super().__init__(message)


@dataclass(frozen=True)
class Failure:
    code: str
    message: str
    hint: str = ""
    suggestion: dict[str, Any] = field(default_factory=dict)


HINTS: dict[str, str] = {
    "OUT_OF_MEMORY": "Use smaller batches, a smaller model, or a machine with more memory.",
    "DISK_FULL": "Free some space where miStudio keeps its data, then try again: what is written so far is used.",
    "NETWORK": "Check the connection and the address, then try again: what is downloaded so far is used.",
    "NOT_FOUND": "Check the spelling of the name or the path.",
    "ACCESS_DENIED": "Check that your token or your user account may read and write it.",
    "CORRUPT_DATA": "Delete the damaged file named above, or add the object again.",
    "TIMEOUT": "Try again; if it happens again, the other side is too slow or does not answer.",
    "VALIDATION": "Correct the value and start again.",
    "WORKER_LOST": "Look at the log's last lines and at the memory of the machine, then try again.",
    "UNKNOWN": "The log has the details.",
}

# Class names rather than classes: torch, requests and safetensors are imported by the jobs that need them alone.
CODES_BY_NAME: dict[str, str] = {
    "OutOfMemoryError": "OUT_OF_MEMORY",
    "ConnectError": "NETWORK",
    "ConnectionError": "NETWORK",
    "HfHubHTTPError": "NETWORK",
    "OfflineModeIsEnabled": "NETWORK",
    "LocalEntryNotFoundError": "NETWORK",
    "ProtocolError": "NETWORK",
    "URLError": "NETWORK",
    "FileNotFoundError": "NOT_FOUND",
    "RepositoryNotFoundError": "NOT_FOUND",
    "RevisionNotFoundError": "NOT_FOUND",
    "EntryNotFoundError": "NOT_FOUND",
    "DatasetNotFoundError": "NOT_FOUND",
    "DataFilesNotFoundError": "NOT_FOUND",
    "GatedRepoError": "ACCESS_DENIED",
    "SafetensorError": "CORRUPT_DATA",
    "CorruptData": "CORRUPT_DATA",
    "PickleOnly": "CORRUPT_DATA",
    "ArrowInvalid": "CORRUPT_DATA",
    "JSONDecodeError": "CORRUPT_DATA",
    "BadZipFile": "CORRUPT_DATA",
    "EOFError": "CORRUPT_DATA",
    "UnicodeDecodeError": "CORRUPT_DATA",
    "ReadTimeout": "TIMEOUT",
    "ConnectTimeout": "TIMEOUT",
    "ProcessLost": "WORKER_LOST",
    "UnsupportedModel": "VALIDATION",
    "UnknownSite": "VALIDATION",
    "WithHint": "VALIDATION",  # what the engine refuses; CorruptData, one of them, has its own code above
    "ValidationError": "VALIDATION",
}
CODES_BY_ERRNO: dict[int, str] = {
    errno.ENOSPC: "DISK_FULL",
    errno.EDQUOT: "DISK_FULL",
    errno.ENOMEM: "OUT_OF_MEMORY",
    errno.ENOENT: "NOT_FOUND",
    errno.EACCES: "ACCESS_DENIED",
    errno.EPERM: "ACCESS_DENIED",
    errno.EROFS: "ACCESS_DENIED",
    errno.ETIMEDOUT: "TIMEOUT",
    errno.ECONNREFUSED: "NETWORK",
    errno.ECONNRESET: "NETWORK",
    errno.ENETUNREACH: "NETWORK",
    errno.EHOSTUNREACH: "NETWORK",
}
# torch says these with a bare RuntimeError, and the Rust readers and writers with an error of their own.
CODES_BY_WORDS: list[tuple[str, str]] = [
    (
        r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|bad_alloc|alloc_failed",
        "OUT_OF_MEMORY",
    ),
    (r"no space left on device|disk quota exceeded|os error 28\b", "DISK_FULL"),
    (r"401 client error|403 client error|permission denied", "ACCESS_DENIED"),
    (r"404 client error", "NOT_FOUND"),
    (r"timed out", "TIMEOUT"),
    (r"connection (refused|reset|error)|name resolution|name or service not known|max retries", "NETWORK"),
]


def code_of_one(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "OUT_OF_MEMORY"
    if isinstance(error, TimeoutError):
        return "TIMEOUT"
    if isinstance(error, OSError) and error.errno in CODES_BY_ERRNO:
        return CODES_BY_ERRNO[error.errno]
    for ancestor in type(error).__mro__:
        if ancestor.__name__ in CODES_BY_NAME:
            return words_code(error, ("ACCESS_DENIED", "NOT_FOUND")) or CODES_BY_NAME[ancestor.__name__]
    return words_code(error)


def words_code(error: BaseException, among: tuple[str, ...] = ()) -> str:
    text = str(error).lower()
    found = (code for pattern, code in CODES_BY_WORDS if re.search(pattern, text))
    return next((code for code in found if not among or code in among), "")


def code_of(error: BaseException) -> str:
    """Of the error, else of what caused it: libraries wrap a full disk into errors of their own."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if code := code_of_one(current):
            return code
        seen.add(id(current))
        current = current.__cause__ or current.__context__
    return "UNKNOWN"


def classify(error: BaseException) -> Failure:
    """What a page shows of an exception: code, message, hint and what one click could do about it."""
    if isinstance(error, InvalidInput):
        return Failure("VALIDATION", error.message, error.hint or HINTS["VALIDATION"])
    if isinstance(error, JobError):
        return Failure(error.code, error.message, error.hint or HINTS[error.code], suggestion_of(error.code))
    code = code_of(error)
    said = str(error).strip() or type(error).__name__
    message = said if code != "UNKNOWN" else f"{type(error).__name__}: {said}"
    return Failure(code, message[:2000], getattr(error, "hint", "") or HINTS[code], suggestion_of(code))


def suggestion_of(code: str) -> dict[str, Any]:
    return {} if code == "VALIDATION" else dict(AGAIN)
