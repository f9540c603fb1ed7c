import errno
import json

import pytest

from jobs.errors import HINTS, InvalidInput, JobError, classify


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class HfHubHTTPError(OSError):
    """Named as the hub's."""


class GatedRepoError(HfHubHTTPError):
    pass


def wrapped(inner):
    try:
        try:
            raise inner
        except Exception as error:
            raise RuntimeError("Failed to write the shard") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "OUT_OF_MEMORY"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.25 GiB"), "OUT_OF_MEMORY"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
            "OUT_OF_MEMORY",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "OUT_OF_MEMORY"),
        (OSError(errno.ENOSPC, "No space left on device"), "DISK_FULL"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "DISK_FULL"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "DISK_FULL"),
        (wrapped(OSError(errno.ENOSPC, "No space left on device")), "DISK_FULL"),
        (ConnectionError("refused"), "NETWORK"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "NETWORK"),
        (RuntimeError("Max retries exceeded with url"), "NETWORK"),
        (HfHubHTTPError("500 Server Error"), "NETWORK"),
        (HfHubHTTPError("404 Client Error: not found"), "NOT_FOUND"),
        (HfHubHTTPError("403 Client Error: Forbidden"), "ACCESS_DENIED"),
        (GatedRepoError("accept the licence first"), "ACCESS_DENIED"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "NOT_FOUND"),
        (PermissionError(errno.EACCES, "Permission denied"), "ACCESS_DENIED"),
        (json.JSONDecodeError("Expecting value", "x", 0), "CORRUPT_DATA"),
        (EOFError("Ran out of input"), "CORRUPT_DATA"),
        (TimeoutError("timed out"), "TIMEOUT"),
        (RuntimeError("The read operation timed out"), "TIMEOUT"),
        (InvalidInput("width must be 1 or more"), "VALIDATION"),
        (KeyError("surprise"), "UNKNOWN"),
    ],
)
def test_each_error_is_known_by_its_class_its_number_or_its_words(error, code):
    assert classify(error).code == code


@pytest.mark.parametrize("code", [code for code in HINTS if code != "VALIDATION"])
def test_each_code_has_a_hint_and_something_to_click(code):
    failure = classify(JobError(code, "It happened."))
    assert (failure.code, failure.message) == (code, "It happened.")
    assert failure.hint and failure.suggestion == {"label": "Try again", "overrides": {}}


def test_wrong_input_keeps_its_own_words_and_suggests_no_blind_repetition():
    failure = classify(InvalidInput("k is 0.", hint="Give 1 to 64.", field="k"))
    assert (failure.message, failure.hint, failure.suggestion) == ("k is 0.", "Give 1 to 64.", {})


def test_an_unknown_error_says_its_class_and_an_empty_one_too():
    assert classify(KeyError("surprise")).message == "KeyError: 'surprise'"
    assert classify(MemoryError()).message == "MemoryError"


def test_a_circle_of_causes_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert classify(first).code == "UNKNOWN"


def test_a_kind_cannot_invent_a_code():
    with pytest.raises(ValueError, match="OOPS is not an error code"):
        JobError("OOPS", "…")
