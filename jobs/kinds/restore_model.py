"""Fetch again what is missing or damaged of a language model, and nothing else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.context import Context
from jobs.errors import JobError
from jobs.kinds.add_model import FromFolder, FromHub, Origin
from jobs.kinds.add_model import Params as Addition
from jobs.kinds.sources import check_source, is_path
from jobs.kinds.verify_model import check_files, examine, remember

LABEL = "Fetch language model again"
QUEUE = "cpu"
HUB = True  # its process gets the token of its owner
RESUMABLE = True
STAGES = {"verify": 40.0, "look up": 2.0, "fetch": 56.0, "describe": 2.0}
ON_SUCCESS = "mistudio.ingest.verification"


@dataclass(frozen=True)
class Params:
    source: str
    folder: str
    files: list[dict[str, Any]]  # name, bytes, sha256, as they were when the model was added
    revision: str = ""  # the commit they are of

    def __post_init__(self) -> None:
        check_source(self.source, self.revision, self.folder, "model")
        check_files(self.folder, self.files)


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Started again, it keeps what is whole by then."""
    from jobs.ml import disk

    folder = Path(params.folder)
    damaged = examine(folder, params.files, ctx)
    remember(folder, damaged)  # until it is whole again, no job uses it
    wanted = [file for file in params.files if file["name"] in damaged]
    if wanted:
        ctx.stage("look up")
        origin = origin_of(params, folder, ctx)
        total = sum(file["bytes"] for file in wanted)
        disk.require_space(folder, total, params.source)
        ctx.stage("fetch", total=2 * total, unit="bytes")  # each is written, then read
        for file in wanted:
            bring(file, origin, folder, ctx)
    ctx.stage("describe")
    remake(params, folder)
    remember(folder, {})
    return {"files": len(params.files), "restored": [file["name"] for file in wanted], "damaged": {}}


def origin_of(params: Params, folder: Path, ctx: Context) -> Origin:
    if is_path(params.source):
        return FromFolder(Path(params.source), folder)
    return FromHub(Addition(params.source, params.folder, params.revision), folder, ctx)


def bring(file: dict[str, Any], origin: Origin, folder: Path, ctx: Context) -> None:
    """Raises JobError where the source has other content now: what was made with the old must not meet the new."""
    from jobs.ml.store import sha256

    name, path, before = file["name"], folder / file["name"], ctx.snapshot.done
    if name not in origin.sizes:
        raise changed(f"{name} is not there any more.")
    path.unlink(missing_ok=True)

    def advance(n: int) -> None:
        ctx.advance(n)
        ctx.check()

    origin.bring(name, folder, advance)
    if sha256(path, advance) != file["sha256"]:
        path.unlink()
        raise changed(f"{name} is another file there now.")
    ctx.at(before + 2 * file["bytes"])


def changed(what: str) -> JobError:
    hint = "Add the source as a new model. This one needs the files it had: put them back, or delete it."
    return JobError("CORRUPT_DATA", f"The source does not have what this model was made of: {what}", hint)


def remake(params: Params, folder: Path) -> None:
    """What is made from the files, where it went with them."""
    from jobs.ml import language_model, store, whole
    from jobs.ml.tokenizer import load_tokenizer
    from jobs.ml.vocabulary import vocabulary

    if not (folder / whole.MADE).is_file():
        vocabulary_size = language_model.read_architecture(folder).vocab_size
        store.write_json(folder / whole.MADE, vocabulary(load_tokenizer(folder), vocabulary_size))
    if not (folder / "manifest.json").is_file():
        said = {"source": params.source, "commit": params.revision, "files": params.files}
        store.write_json(folder / "manifest.json", {"kind": "language_model", **said})
