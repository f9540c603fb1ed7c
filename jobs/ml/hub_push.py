"""Sending a folder to the hub. Endpoint and token come from HF_ENDPOINT and HF_TOKEN, as for what is fetched."""

from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from jobs.ml.hub import HubUnreachable, NoAccess, NotOnHub, in_words, reason

WRITE_HINT = "Store a token with the right to write there on your account page, or set HF_TOKEN for the workers."


@dataclass(frozen=True)
class Pushed:
    commit: str
    url: str


def push(folder: Path, repository: str, message: str, *, private: bool = False) -> Pushed:
    """All files of the folder as one commit to a model repository, which is made where there is none. What is there
    already and unchanged is not sent again. Raises NoAccess, NotOnHub, HubUnreachable."""
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        folder_files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        ignored = ["README.md"] if "README.md" in folder_files and has_card(api, repository) else []
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, ignore_patterns=ignored
        )
        return Pushed(done.oid, str(done.commit_url))
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


def has_card(api: HfApi, repository: str) -> bool:
    """Then it stays: it may speak of more than this SAE."""
    return any(sibling.rfilename == "README.md" for sibling in api.model_info(repository).siblings or ())
