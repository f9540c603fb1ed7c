"""Bring the texts of files or of a dataset of the hub into a folder of Parquet, and measure them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds.sources import check_source, counter, is_path, keep_to_limit
from jobs.ml.errors import Unusable

if TYPE_CHECKING:
    from jobs.ml.document_statistics import DocumentStatistics
    from jobs.ml.documents import DocumentWriter
    from jobs.ml.hub_documents import HubDocuments
    from jobs.ml.local_documents import LocalDocuments

    Source = LocalDocuments | HubDocuments

LABEL = "Add dataset"
QUEUE = "cpu"
RESUMABLE = True
HUB = True  # its process gets the token of its owner
STAGES = {"look up": 2.0, "read": 88.0, "describe": 10.0}
ON_SUCCESS = "mistudio.ingest.dataset"

SAMPLES, SAMPLE_CHARACTERS = 8, 600
CHECKED_EVERY = 64  # documents, and at every long one
LONG = 2**16  # characters
PROGRESS = "progress.json"
RESULT = ("statistics", "columns", "text_column", "samples", "commit")


@dataclass(frozen=True)
class Params:
    source: str  # a hub id, or an absolute path of a file or folder
    folder: str
    config: str = ""
    split: str = "train"
    revision: str = ""
    text_column: str = ""
    max_documents: int | None = None

    def __post_init__(self) -> None:
        check_source(self.source, self.revision, self.folder, "dataset")
        if is_path(self.source) and self.config:
            raise InvalidInput("Files on this machine have no configurations.", "Leave it empty.", "config")
        if self.max_documents is not None and (type(self.max_documents) is not int or self.max_documents < 1):
            raise InvalidInput("Give 1 document or more, or leave it empty for all.", field="max_documents")


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Started again, it keeps the shards that are whole, if they are of the same source, and goes on after them."""
    from jobs.ml.store import read_manifest

    folder = Path(params.folder)
    folder.mkdir(parents=True, exist_ok=True)
    finished = read_manifest(folder)
    if finished and finished["params"] == asdict(params):
        return {name: finished[name] for name in RESULT}
    try:
        ctx.stage("look up")
        source = open_source(params, folder, ctx)
        statistics = read(params, source, Progress(folder, params, source), ctx)
    except Unusable as error:
        raise InvalidInput(str(error), error.hint, error.field) from error
    return describe(params, source, statistics, ctx)


def open_source(params: Params, folder: Path, ctx: Context) -> "Source":
    if is_path(params.source):
        from jobs.ml.local_documents import LocalDocuments

        if folder.resolve().is_relative_to(Path(params.source).resolve()):
            raise Unusable(f"{params.source} is where miStudio keeps its data.", "Choose a folder of your own.")
        return LocalDocuments(Path(params.source), params.text_column)
    from jobs.ml.hub import Patience
    from jobs.ml.hub_documents import HubDocuments

    keep_to_limit(ctx)
    patience = Patience(ctx.check, ctx.log, tries=3)
    revision = begun_at(folder, params) or params.revision
    return HubDocuments(params.source, params.config, params.split, revision, params.text_column, patience)


def begun_at(folder: Path, params: Params) -> str:
    """The commit that an earlier attempt at the same thing began with: a branch may have moved since."""
    from jobs.ml.store import read_json

    path = folder / PROGRESS
    plan = read_json(path)["plan"] if path.exists() else {}
    return plan["commit"] if plan.get("params") == asdict(params) else ""


class Progress:
    """How many shards are whole, and where in the source the next one begins."""

    def __init__(self, folder: Path, params: Params, source: "Source") -> None:
        from jobs.ml.documents import shards
        from jobs.ml.store import fingerprint, read_json

        self.folder, self.source = folder, source
        self.plan = {"params": asdict(params), "commit": source.commit, "mark": fingerprint(source.mark)}
        path = folder / PROGRESS
        begun = read_json(path) if path.exists() else {}
        if begun.get("plan") != self.plan:
            begun = {"plan": self.plan, "shards": 0, "documents": 0, "state": None}
        self.shards, self.documents, self.state = begun["shards"], begun["documents"], begun["state"]
        for stale in (*shards(folder)[self.shards :], *folder.glob(".*"), folder / "manifest.json"):
            stale.unlink(missing_ok=True)
        self.save(self.shards, self.documents, self.state)

    def save(self, shards: int, documents: int, state: Any) -> None:
        from jobs.ml.store import write_json

        kept = {"plan": self.plan, "shards": shards, "documents": documents, "state": state}
        write_json(self.folder / PROGRESS, kept)


def read(params: Params, source: "Source", begun: Progress, ctx: Context) -> "DocumentStatistics":
    from jobs.ml.disk import require_space
    from jobs.ml.document_statistics import DocumentStatistics
    from jobs.ml.documents import DocumentWriter, read_documents

    require_space(begun.folder, 0 if params.max_documents else source.largest, f"The text of {params.source}")
    limit = params.max_documents if source.unit == "documents" else None
    ctx.stage("read", total=min(filter(None, (limit, source.total)), default=None), unit=source.unit)
    statistics = DocumentStatistics()
    for text in read_documents(begun.folder) if begun.shards else ():
        statistics.add(text)
        ctx.check()
    ctx.log(f"documents are the column “{source.column}” of {params.source}; {statistics.documents:,} are there")
    writer = DocumentWriter(begun.folder, begun.shards, begun.documents)
    try:
        write(params.max_documents, source, begun, (writer, statistics), ctx)
    finally:
        writer.close()
    if not statistics.documents:
        raise Unusable(f"{params.source} has no document with text: {source.counts.empty_dropped:,} are empty.")
    return statistics


def write(
    limit: int | None,
    source: "Source",
    begun: Progress,
    sinks: "tuple[DocumentWriter, DocumentStatistics]",
    ctx: Context,
) -> None:
    """What `begun` has not yet. A source without a state is read from its start, past what is there."""
    writer, statistics = sinks
    to_skip = 0 if begun.state else begun.documents
    for n, group in enumerate(source.groups(begun.state)):
        if n % CHECKED_EVERY == 0 or len(group[0]) > LONG:
            ctx.at(source.position())
            ctx.check()
        if to_skip:
            to_skip -= len(group)
        elif limit is None or statistics.documents < limit:
            for text in group[: limit and limit - statistics.documents]:
                statistics.add(text)
                writer.add(text)
        if writer.full:
            writer.finish_shard()
            begun.save(writer.shards, writer.documents, source.state())
        if not to_skip and statistics.documents == limit:
            break
    writer.finish_shard()
    begun.save(writer.shards, writer.documents, source.state())


def describe(params: Params, source: "Source", statistics: "DocumentStatistics", ctx: Context) -> dict[str, Any]:
    from jobs.ml.documents import shards
    from jobs.ml.store import write_manifest

    folder = Path(params.folder)
    ctx.stage("describe", total=source.largest or None, unit="bytes")
    result = {
        "statistics": {**statistics.summary(), **asdict(source.counts)},
        "columns": source.columns,
        "text_column": source.column,
        "samples": samples(folder, statistics.documents),
        "commit": source.commit,
    }
    sources = source.sources(counter(ctx))
    names = [path.name for path in shards(folder)]
    write_manifest(folder, names, kind="dataset", params=asdict(params), sources=sources, **result)
    (folder / PROGRESS).unlink()
    return result


def samples(folder: Path, documents: int) -> list[str]:
    """The beginnings of documents spread over the data. NUL shows as ␀: databases refuse it."""
    from jobs.ml.documents import read_documents

    n = min(SAMPLES, documents)
    places = [(2 * i + 1) * documents // (2 * n) for i in range(n)]
    return [next(read_documents(folder, place))[:SAMPLE_CHARACTERS].replace("\0", "␀") for place in places]
