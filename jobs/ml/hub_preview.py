"""What a repository of the hub holds and would cost, said before anything is fetched. Asks twice, in bounded time.

Whatever the hub answers is bounded and believed only in its type: anyone may have written it.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import ModelInfo

from jobs.ml import hub, model_config
from jobs.ml.errors import WithHint
from jobs.ml.hub import HubError, HubFile, HubUnreachable, NoAccess, Repository
from jobs.ml.model_config import DTYPE_BYTES, ConfigFacts
from jobs.ml.model_files import NOT_NEEDED, VOCABULARIES, choose_files, weight_formats, why_left

LARGEST_LIST = 16 * 2**20  # bytes of a list of files: some 100,000 of them
LARGEST_CONFIG = 2 * 2**20


@dataclass(frozen=True)
class Preview:
    """`refusal`: why it cannot be used, "" if nothing speaks against it. `closed`: why its files cannot be had."""

    repository: Repository
    licence: str
    gated: bool
    private: bool
    taken: tuple[HubFile, ...] = ()
    left: tuple[tuple[HubFile, str], ...] = ()  # with the reason
    formats: tuple[str, ...] = ()
    facts: ConfigFacts | None = None
    n_parameters: int | None = None
    estimated: bool = False  # the number of parameters, from bytes and dtype
    tokenizer: bool = False
    refusal: str = ""
    hint: str = ""
    closed: str = ""
    closed_hint: str = ""
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)  # ending → number of files, bytes

    @property
    def taken_bytes(self) -> int:
        return sum(file.size or 0 for file in self.taken)

    @property
    def total_bytes(self) -> int:
        return sum(file.size or 0 for file in self.repository.files)


def preview(kind: str, id: str, revision: str = "", *, token: str = "", seconds: float = 8.0) -> Preview:
    """Raises NotOnHub, NoAccess, HubUnreachable."""
    until, api = time.monotonic() + seconds, HfApi()
    at = f"/revision/{quote(revision, safe='')}" if revision else ""
    with asked(kind, id, revision, api, until):
        answer = hub.read_bounded(f"{api.endpoint}/api/{kind}s/{id}{at}?blobs=true", LARGEST_LIST, until, token)
    found = about(kind, id, answer, api.endpoint)
    if kind == "dataset":
        return with_access(replace(found, kinds=by_ending(found.repository.files)), token, until)
    return judged(with_access(found, token, until), json.loads(answer))


@contextmanager
def asked(kind: str, id: str, revision: str, api: HfApi | None, until: float) -> Iterator[None]:
    """Errors in words; other ids are suggested only where there is time left to ask for them."""
    with hub.explained(kind, id, revision, api if until - time.monotonic() > 3 else None):
        try:
            yield
        except hub.TooMuch as error:
            raise HubUnreachable(f"The {kind} {id} cannot be looked at: {error}.") from error


def about(kind: str, id: str, answer: bytes, endpoint: str) -> Preview:
    try:
        said = json.loads(answer)
        info = ModelInfo(**{name: said[name] for name in ("id", "sha", "gated", "private", "siblings") if name in said})
        files = tuple(hub.hub_file(sibling) for sibling in info.siblings or ())
        checked = all(type(file.name) is str and type(file.size) in (int, type(None)) for file in files)
        if not checked or not isinstance(info.sha, str):
            raise TypeError("not what the hub answers")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HubUnreachable(f"What answers at {endpoint} is not the hub.") from error
    repository = Repository(kind, id, info.sha[:64], files, endpoint)
    return Preview(repository, licence_of(said), bool(info.gated), bool(info.private))


def licence_of(answer: dict[str, Any]) -> str:
    """Of the model card, else of the tags."""
    card = answer.get("cardData")
    card = card if isinstance(card, dict) else {}
    said = card.get("license_name") if card.get("license") == "other" else card.get("license")
    said = ", ".join(map(str, said)) if isinstance(said, list) else said
    tags = answer.get("tags")
    tags = tags if isinstance(tags, list) else []
    tagged = [tag[8:] for tag in tags if isinstance(tag, str) and tag.startswith("license:")]
    return model_config.word(said) or (tagged[0][:120] if tagged else "")


def by_ending(files: tuple[HubFile, ...]) -> dict[str, tuple[int, int]]:
    """The heaviest endings first."""
    found: dict[str, tuple[int, int]] = {}
    for file in files:
        name = file.name.rpartition("/")[2]
        ending = name.rpartition(".")[2][:20] if "." in name else ""
        n, size = found.get(ending, (0, 0))
        found[ending] = n + 1, size + (file.size or 0)
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def with_access(found: Preview, token: str, until: float) -> Preview:
    """Anyone may list a gated repository; whether its files may be had is known when one is asked for."""
    repository = found.repository
    try:
        if repository.kind == "dataset" and (found.gated or found.private):
            hub.check_access(repository, hub.Patience(tries=1), token, max(0.1, until - time.monotonic()))
        if repository.kind == "model" and "config.json" in {file.name for file in repository.files}:
            with asked("model", repository.id, repository.commit, None, until):
                text = hub.read_bounded(repository.url("config.json"), LARGEST_CONFIG, until, token)
            config = model_config.parse(text)
            found = replace(found, facts=model_config.facts(config))
            model_config.require_known(config)
    except HubError as error:
        return replace(found, closed=str(error), closed_hint=error.hint)
    except WithHint as error:
        return replace(found, refusal=str(error).rstrip("."), hint=error.hint)
    return found


def judged(found: Preview, answer: dict[str, Any]) -> Preview:
    """Which files of a model are taken, and why the others are not."""
    files = {file.name: file for file in found.repository.files}
    try:
        chosen = choose_files(list(files))
    except WithHint as error:
        chosen = []
        found = replace(found, refusal=str(error).rstrip("."), hint=error.hint)
    taken = tuple(files[name] for name in chosen)
    left = tuple((file, why_left(file.name)) for name, file in files.items() if name not in chosen)
    if not chosen:  # what would be taken is of no interest then
        left = tuple((file, why) for file, why in left if why != NOT_NEEDED)
    stated = stated_parameters(answer)
    dtype = found.facts.dtype if found.facts else ""
    weights = sum(file.size or 0 for file in taken if file.name.endswith(".safetensors"))
    estimate = weights // DTYPE_BYTES[dtype] if weights and dtype in DTYPE_BYTES else None
    return replace(
        found,
        taken=taken,
        left=left,
        formats=tuple(weight_formats(list(files))),
        tokenizer=bool(VOCABULARIES & files.keys()),
        n_parameters=stated or estimate,
        estimated=stated is None and estimate is not None,
    )


def stated_parameters(answer: dict[str, Any]) -> int | None:
    said = answer.get("safetensors")
    return model_config.count(said, ("total",)) if isinstance(said, dict) else None


def account_of(token: str, *, seconds: float = 8.0) -> str:
    """The name of the account, with what the token may do. Raises NoAccess, HubUnreachable."""
    endpoint = HfApi().endpoint
    try:
        answer = json.loads(hub.read_bounded(f"{endpoint}/api/whoami-v2", 2**20, time.monotonic() + seconds, token))
        role = (answer.get("auth") or {}).get("accessToken", {}).get("role", "")
        return f"{str(answer['name'])[:80]}{f', and may {str(role)[:20]}' if role else ''}"
    except httpx2.HTTPError as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            raise NoAccess("The hub does not accept this token.", "It may have been revoked. Store another.") from error
        raise HubUnreachable(f"The token cannot be checked: {hub.reason(error)}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubUnreachable(f"What answers at {endpoint} is not the hub.") from error
