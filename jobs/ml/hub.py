"""Repositories of the hub: what they hold, and fetching files so that an interruption costs nothing.

The endpoint and the token come from HF_ENDPOINT and HF_TOKEN, read when huggingface_hub is first imported.
Bytes are streamed here because huggingface_hub 2.4 throws away what it has of a file when it is interrupted.
"""

import difflib
import errno
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from jobs.ml.errors import CorruptData
from jobs.ml.store import sync

CHUNK = 2**20
FIRST_WAIT = 1.0  # seconds; doubled for each further try, up to 30
LONGEST_WAIT = 310.0  # seconds; the hub's rate limits are reset every five minutes
FLEETING = {408, 425, 429, 500, 502, 503, 504}  # statuses that may be gone at the next try
TOKEN_HINT = "Store a token of an account that may read it on your account page, or set HF_TOKEN for the workers."  # noqa: S105
LISTED = 2**20  # bytes, at most, of a list of ids
T = TypeVar("T")


class HubError(OSError):
    """`errno` says which kind of trouble it is to whoever knows the errors of the system alone."""

    ERRNO = 0

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.errno, self.hint = self.ERRNO, hint


class NotOnHub(HubError):
    ERRNO = errno.ENOENT


class NoAccess(HubError):
    ERRNO = errno.EACCES


class HubUnreachable(HubError):
    ERRNO = errno.EHOSTUNREACH


@dataclass(frozen=True)
class HubFile:
    name: str
    size: int | None  # bytes
    sha256: str = ""  # of large files
    blob: str = ""  # git's sha1 of small files


@dataclass(frozen=True)
class Repository:
    kind: str  # "model" or "dataset"
    id: str
    commit: str
    files: tuple[HubFile, ...]
    endpoint: str

    def url(self, name: str) -> str:
        room = "datasets/" if self.kind == "dataset" else ""
        return f"{self.endpoint}/{room}{self.id}/resolve/{self.commit}/{name}"


@dataclass(frozen=True)
class Patience:
    """How long to go on after failures; `check` is asked all the time and raises if the work shall end."""

    check: Callable[[], None] = lambda: None
    log: Callable[[str], None] = lambda text: None
    tries: int = 8
    longest: float = LONGEST_WAIT

    def sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(0.2, left))


@dataclass
class Fetch:
    """One file on its way: `done` bytes are in `partial`, whose name carries the content it is part of."""

    file: HubFile
    url: str
    target: Path
    advance: Callable[[int], None]
    patience: Patience
    partial: Path = field(init=False)

    def __post_init__(self) -> None:
        identity = hashlib.sha256(f"{self.url} {self.file}".encode()).hexdigest()[:12]
        self.partial = self.target.with_name(f".{self.target.name}.{identity}.partial")

    @property
    def done(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0


def look_up(
    kind: str, repository: str, revision: str = "", *, endpoint: str = "", patience: Patience | None = None
) -> Repository:
    """The files of a model or dataset at a revision (empty: the default branch), resolved to a commit.

    Raises NotOnHub, NoAccess, HubUnreachable.
    """
    api = HfApi(endpoint=endpoint or None)
    ask = api.model_info if kind == "model" else api.dataset_info
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT

    def answer() -> Repository:
        try:
            info: Any = ask(repository, revision=revision or None, files_metadata=True, timeout=timeout)
            files = tuple(hub_file(sibling) for sibling in info.siblings or ())
        except HFValidationError as error:
            raise NotOnHub(f"“{repository}” cannot be an id.", spelling(kind, repository)) from error
        except httpx2.HTTPError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # A login page or a proxy's error page came with status 200.
            raise HubUnreachable(f"What answers at {api.endpoint} is not the hub.") from error
        return Repository(kind, repository, info.sha or revision, files, api.endpoint)

    with explained(kind, repository, revision, api):
        return persevere(answer, patience or Patience(tries=3))


def hub_file(sibling: Any) -> HubFile:
    sha256 = sibling.lfs.sha256 if sibling.lfs else ""
    return HubFile(sibling.rfilename, sibling.size, sha256, "" if sha256 else sibling.blob_id or "")


def check_access(repository: Repository, patience: Patience, token: str = "", seconds: float | None = None) -> None:
    """Anyone may list a gated repository; whether its files may be had is known when one is asked for: the largest,
    since a card may be open to all. Raises NoAccess, NotOnHub, HubUnreachable.
    """
    if not repository.files:
        return
    url = repository.url(max(repository.files, key=lambda file: file.size or 0).name)
    headers, timeout = build_hf_headers(token=token or None), seconds or constants.HF_HUB_DOWNLOAD_TIMEOUT

    def ask() -> None:
        hf_raise_for_status(get_session().head(url, headers=headers, follow_redirects=False, timeout=timeout))

    with explained(repository.kind, repository.id, repository.commit):
        persevere(ask, patience)


def fetch(
    repository: Repository, file: HubFile, folder: Path, advance: Callable[[int], None], patience: Patience
) -> None:
    """Brings `folder`/name from the hub; goes on where an earlier try ended.

    `advance` is told the bytes that are there, and negative ones where the server made us start again.
    Raises NotOnHub, NoAccess, HubUnreachable, and what `patience.check` raises.
    """
    target = folder / file.name
    if target.exists() and file.size in (None, target.stat().st_size):
        advance(target.stat().st_size)
        return
    job = Fetch(file, repository.url(file.name), target, advance, patience)
    advance(job.done)
    with explained(repository.kind, repository.id, repository.commit):
        persevere(lambda: stream(job), patience, lambda: job.done)
    sync(job.partial)
    job.partial.replace(target)


def stream(job: Fetch) -> None:
    """One request for what is missing. A break leaves the bytes that came in place."""
    if job.done and job.done == job.file.size:
        return
    # Ranges count the bytes of what is sent, so it must not be sent compressed.
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if job.done:
        headers["Range"] = f"bytes={job.done}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", job.url, headers=headers, timeout=timeout) as response:
        if response.is_error:
            response.read()
        if response.status_code == 416:
            start_again(job)
        hf_raise_for_status(response)
        if response.status_code != 206:
            start_again(job)
        with job.partial.open("ab", buffering=0) as sink:
            for chunk in response.iter_bytes():  # as they come: what came before a break or a kill is kept
                write(job, sink, chunk)
                job.patience.check()
    check_length(job)


def write(job: Fetch, sink: RawIOBase, chunk: bytes) -> None:
    """All of it. On a disk that fills up a part is written first, and counts."""
    rest = memoryview(chunk)
    while rest:
        written = sink.write(rest) or 0
        job.advance(written)
        rest = rest[written:]


def check_length(job: Fetch) -> None:
    if job.file.size is not None and job.done != job.file.size:
        came = job.done
        if came > job.file.size:
            start_again(job)
        raise httpx2.RemoteProtocolError(f"{job.file.name}: {came:,} of {job.file.size:,} bytes came")


def start_again(job: Fetch) -> None:
    job.advance(-job.done)
    job.partial.unlink(missing_ok=True)


def verify(path: Path, file: HubFile, advance: Callable[[int], None]) -> str:
    """The sha256 of a fetched file. Raises CorruptData, and removes the file, if the hub has another."""
    if whole := is_sound(path, file, advance):
        return whole
    path.unlink()
    raise CorruptData(f"{file.name} came damaged: its checksum is not the hub's. Retry to fetch it again.")


def is_sound(path: Path, file: HubFile, advance: Callable[[int], None]) -> str:
    """The sha256 of a file that is the hub's, "" for another."""
    size = path.stat().st_size
    whole, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as source:
        while chunk := source.read(CHUNK):
            whole.update(chunk)
            blob.update(chunk)
            advance(len(chunk))
    sound = file.sha256 in ("", whole.hexdigest()) and file.blob in ("", blob.hexdigest())
    return whole.hexdigest() if sound and file.size in (None, size) else ""


def persevere(work: Callable[[], T], patience: Patience, progress: Callable[[], int] = lambda: 0) -> T:
    """Tries again after failures that may be fleeting; tries that brought something do not count."""
    failures, mark = 0, progress()
    while True:
        try:
            return work()
        except httpx2.HTTPError as error:
            failures = 1 if progress() > mark else failures + 1
            mark = progress()
            wait = seconds_to_wait(error, failures, patience)
            if failures >= patience.tries or wait is None or wait > patience.longest:
                raise
            patience.log(f"{reason(error)}; trying again in {wait:.0f} s")
            patience.sleep(wait)


def seconds_to_wait(error: httpx2.HTTPError, failures: int, patience: Patience) -> float | None:
    """None where another try is pointless."""
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code not in FLEETING:
            return None
        if (asked := retry_after(error)) is not None:
            return float(asked)
    return min(30.0, 2.0 ** (failures - 1)) * FIRST_WAIT


def retry_after(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    text = response.headers.get("Retry-After", "").strip() if response is not None else ""
    return int(text) if text.isdecimal() else None


def reason(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered {error.response.status_code} {error.response.reason_phrase}".rstrip()
    if isinstance(error, httpx2.TimeoutException):
        return "the hub did not answer in time"
    return f"the connection failed ({str(error) or type(error).__name__})"


@contextmanager
def explained(kind: str, repository: str, revision: str = "", api: HfApi | None = None) -> Iterator[None]:
    """Errors of the client as NotOnHub, NoAccess or HubUnreachable, in words for the one who typed the id."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubUnreachable(
            f"The hub is switched off here (HF_HUB_OFFLINE), so the {kind} {repository} cannot be fetched.",
            "Unset HF_HUB_OFFLINE for the workers, or give a folder on this machine.",
        ) from error
    except httpx2.HTTPError as error:
        raise in_words(error, f"The {kind} {repository}", revision) or unknown(kind, repository, api) from error


class TooMuch(ValueError):
    """More came than anyone honest would send."""


def read_bounded(url: str, most: int, until: float, token: str = "") -> bytes:
    """What the hub answers, of `most` bytes, by the moment `until` of the monotonic clock.

    Raises httpx2.HTTPError, among them HfHubHTTPError and time-outs; TooMuch.
    """
    headers = build_hf_headers(token=token or None) | {"Accept-Encoding": "identity"}
    timeout = max(0.1, until - time.monotonic())
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        body = bytearray()
        for chunk in response.iter_raw():  # raw: a packed answer cannot unfold into gigabytes
            body += chunk
            if len(body) > most:
                raise TooMuch(f"{url.partition('?')[0]} answers with more than {most:,} bytes")
            if time.monotonic() > until:
                raise httpx2.ReadTimeout("the answer came too slowly", request=response.request)
        plain = {name: text for name, text in response.headers.items() if name.lower() != "content-encoding"}
        hf_raise_for_status(
            httpx2.Response(response.status_code, headers=plain, content=bytes(body), request=response.request)
        )
    return bytes(body)


def in_words(error: httpx2.HTTPError, what: str, revision: str) -> HubError | None:
    """None where the hub does not know the repository."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if isinstance(error, GatedRepoError):
        return NoAccess(f"{what} is gated.", f"Accept its terms on its page on the hub. {TOKEN_HINT}")
    if isinstance(error, RevisionNotFoundError):
        hint = "Give a branch, a tag or a whole commit; empty is the default branch."
        return NotOnHub(f"{what} has no revision “{revision}”.", hint)
    if isinstance(error, RemoteEntryNotFoundError):
        return NotOnHub(f"A file of {what[0].lower()}{what[1:]} is not on the hub any more.")
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return None
    if isinstance(error, DisabledRepoError) or status in (401, 403):
        return NoAccess(f"{what} may not be read by this machine: {reason(error)}.", TOKEN_HINT)
    if status == 429:
        return HubUnreachable(f"{what}: the hub was asked too often (429).", "Wait some minutes, then retry.")
    return HubUnreachable(f"{what} cannot be fetched: {reason(error)}.", "Retry: what came already is kept.")


def unknown(kind: str, repository: str, api: HfApi | None) -> NotOnHub:
    return NotOnHub(f"There is no {kind} “{repository}” on the hub.", spelling(kind, repository, api))


def spelling(kind: str, repository: str, api: HfApi | None = None) -> str:
    advice = f"Check the spelling: an id is owner/{kind}. If it is private: {TOKEN_HINT}"
    near = (named_alike(kind, repository, api) or of_owner(kind, repository, api)) if api else []
    return f"Did you mean {' or '.join(near)}? {advice}" if near else advice


def named_alike(kind: str, repository: str, api: HfApi) -> list[str]:
    """The most downloaded of those that have the name in theirs."""
    name = repository.rpartition("/")[2]
    return listed(f"{api.endpoint}/api/{kind}s", {"search": name, "sort": "downloads", "limit": "3"})


def of_owner(kind: str, repository: str, api: HfApi) -> list[str]:
    owner = repository.rpartition("/")[0]
    theirs = listed(f"{api.endpoint}/api/{kind}s", {"author": owner, "limit": "200"}) if owner else []
    names = {id.rpartition("/")[2]: id for id in theirs}
    return [names[name] for name in difflib.get_close_matches(repository.rpartition("/")[2], names, n=3)]


def listed(url: str, params: dict[str, str]) -> list[str]:
    """Ids that the hub answers with; none where it cannot be asked."""
    try:
        answer = read_bounded(f"{url}?{urlencode(params)}", LISTED, time.monotonic() + 5)
        return [str(entry["id"]) for entry in json.loads(answer)]
    except (httpx2.HTTPError, OSError, ValueError, KeyError, TypeError):
        return []
