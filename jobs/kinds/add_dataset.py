"""Bring the texts of files or of a dataset of the hub into a folder of Parquet, and measure them."""

import codecs
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds.documents import PROGRESS, bring, check_limits, finished
from jobs.kinds.sources import check_source, is_path, keep_to_limit
from jobs.ml.errors import Unusable

if TYPE_CHECKING:
    from jobs.ml.hub_documents import HubDocuments
    from jobs.ml.local_documents import LocalDocuments

LABEL = "Add dataset"
QUEUE = "cpu"
RESUMABLE = True
HUB = True  # its process gets the token of its owner
STAGES = {"look up": 2.0, "read": 88.0, "describe": 10.0}
ON_SUCCESS = "mistudio.ingest.dataset"

PREFERENCES = ("chosen", "rejected")


@dataclass(frozen=True)
class Params:
    source: str  # a hub id, or an absolute path of a file or folder
    folder: str
    config: str = ""
    split: str = "train"
    revision: str = ""
    text_column: str = ""
    max_documents: int | None = None
    max_bytes: int | None = None  # of text in UTF-8
    encoding: str = ""  # of files that do not say it themselves; UTF-8
    preference: str = "chosen"  # which answer of a preference pair
    skip_broken: bool = False
    deduplicate: bool = False

    def __post_init__(self) -> None:
        check_source(self.source, self.revision, self.folder, "dataset")
        if is_path(self.source) and self.config:
            raise InvalidInput("Files on this machine have no configurations.", "Leave it empty.", "config")
        check_limits(self.max_documents, self.max_bytes)
        if self.preference not in PREFERENCES:
            raise InvalidInput(f"“{self.preference}” is neither chosen nor rejected.", field="preference")
        if self.encoding and not is_path(self.source):
            raise InvalidInput("Datasets of the hub say their encoding.", "Leave it empty.", "encoding")
        check_encoding(self.encoding)


def check_encoding(name: str) -> None:
    try:
        text = not name or codecs.lookup(name)._is_text_encoding
    except LookupError:
        text = False
    if not text:
        hint = "Such as windows-1252, latin-1, utf-16-le, gb18030 or shift_jis."
        raise InvalidInput(f"“{name}” is no encoding of text that is known here.", hint, "encoding")


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Started again, it keeps the shards that are whole, if they are of the same source, and goes on after them."""
    Path(params.folder).mkdir(parents=True, exist_ok=True)
    if result := finished(params):
        return result
    try:
        ctx.stage("look up")
        return bring(params, open_source(params, ctx), params.source, ctx)
    except Unusable as error:
        raise InvalidInput(str(error), error.hint, error.field) from error


def open_source(params: Params, ctx: Context) -> "LocalDocuments | HubDocuments":
    folder = Path(params.folder)
    choices: dict[str, Any] = {
        "preference": params.preference,
        "skip_broken": params.skip_broken,
        "deduplicate": params.deduplicate,
    }
    if is_path(params.source):
        from jobs.ml.local_documents import LocalDocuments

        if folder.resolve().is_relative_to(Path(params.source).resolve()):
            raise Unusable(f"{params.source} is where miStudio keeps its data.", "Choose a folder of your own.")
        return LocalDocuments(Path(params.source), params.text_column, encoding=params.encoding, **choices)
    from jobs.ml.hub import Patience
    from jobs.ml.hub_documents import HubDocuments

    keep_to_limit(ctx)
    patience = Patience(ctx.check, ctx.log, tries=3)
    revision = begun_at(folder, params) or params.revision
    return HubDocuments(params.source, params.config, params.split, revision, params.text_column, patience, **choices)


def begun_at(folder: Path, params: Params) -> str:
    """The commit that an earlier attempt at the same thing began with: a branch may have moved since."""
    from jobs.ml.store import read_json_if_there

    plan = read_json_if_there(folder / PROGRESS).get("plan", {})
    return plan["commit"] if plan.get("params") == asdict(params) else ""
