"""Sending a folder to the hub. Endpoint and token come from HF_ENDPOINT and HF_TOKEN, as for what is fetched."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from jobs.ml.errors import Unusable
from jobs.ml.hub import HubUnreachable, NoAccess, NotOnHub, in_words, reason

WRITE_HINT = "Store a token with the right to write there on your account page, or set HF_TOKEN for the workers."
CARD = "README.md"
LOOK = 0.2  # seconds


@dataclass(frozen=True)
class Pushed:
    commit: str
    url: str


def push(
    folder: Path,
    repository: str,
    message: str,
    *,
    private: bool = False,
    check: Callable[[], None] = lambda: None,
    advance: Callable[[int], None] = lambda n: None,
) -> Pushed:
    """All files of the folder as one commit to a model repository, which is made where there is none. What is there
    already and unchanged is not sent again.

    `check` is asked all the while; what it raises ends the push at once, without a commit, unless that is under way:
    then it may still be made. huggingface_hub lets nobody interrupt it, so it works beside, in a thread that ends with
    the process. `advance` is told the bytes of each file that is there. Raises NoAccess, NotOnHub, HubUnreachable,
    Unusable.
    """
    answer: Future[Pushed] = Future()
    ended = threading.Event()

    def work() -> None:
        try:
            answer.set_result(sent(folder, repository, message, private, advance, ended))
        except BaseException as error:  # whoever waits gets it
            answer.set_exception(error)

    threading.Thread(target=work, name="push", daemon=True).start()
    try:
        while not wait([answer], LOOK).done:
            check()
    finally:
        ended.set()
    with explained(repository):
        return answer.result()


class Ended(Exception):
    """Nobody waits for it any more."""


def sent(
    folder: Path, repository: str, message: str, private: bool, advance: Callable[[int], None], ended: threading.Event
) -> Pushed:
    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if CARD in names and has_card(api, repository):
        names.remove(CARD)
    if CARD in names:
        check_card((folder / CARD).read_text(encoding="utf-8"))
    files = [CommitOperationAdd(name, folder / name) for name in names]
    for file in files:
        api.preupload_lfs_files(repository, [file], free_memory=False)
        advance((folder / file.path_in_repo).stat().st_size)
        if ended.is_set():
            break
    if ended.is_set():
        raise Ended
    done = api.create_commit(repository, files, commit_message=message)
    return Pushed(done.oid, str(done.commit_url))


def has_card(api: HfApi, repository: str) -> bool:
    """Then it stays: it may speak of more than this SAE."""
    return any(sibling.rfilename == CARD for sibling in api.model_info(repository).siblings or ())


def check_card(text: str) -> None:
    """Before anything is sent: the hub takes no commit whose card it does not understand. Raises Unusable."""
    try:
        ModelCard(text).validate()
    except ValueError as error:
        said = " ".join(str(error).split())[:300]
        hint = "Give a licence as the hub names it, such as mit."
        raise Unusable(f"The hub does not take the card: {said}", hint, "licence") from error


@contextmanager
def explained(repository: str) -> Iterator[None]:
    """Errors of the client as NoAccess, NotOnHub or HubUnreachable, in words for the one who typed the id."""
    try:
        yield
    except HFValidationError as error:
        raise NotOnHub(f"“{repository}” cannot be an id.", "An id is owner/name.") from error
    except OfflineModeIsEnabled as error:
        raise HubUnreachable("The hub is switched off here (HF_HUB_OFFLINE).", "Unset it for the workers.") from error
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403, 404):
            said = f"The hub does not let this token write to {repository}: {reason(error)}"
            raise NoAccess(f"{said}.", WRITE_HINT) from error
        raise HubUnreachable(f"{repository} cannot be written: {reason(error)}.", "Retry.") from error
    except httpx2.HTTPError as error:
        what = f"The model {repository}"
        raise in_words(error, what, "") or HubUnreachable(f"{what} cannot be written: {error}.", "Retry.") from error
