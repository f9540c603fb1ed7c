"""What adding a dataset and mixing several share: the documents of a source, into shards, whatever interrupts it."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds.sources import counter
from jobs.ml.errors import Unusable

if TYPE_CHECKING:
    from jobs.ml.conversations import Document, Message
    from jobs.ml.document_statistics import DocumentStatistics
    from jobs.ml.documents import DocumentWriter
    from jobs.ml.hub_documents import HubDocuments
    from jobs.ml.local_documents import LocalDocuments
    from jobs.ml.mixed_documents import MixedDocuments

    Source = LocalDocuments | HubDocuments | MixedDocuments

SAMPLES, SAMPLE_CHARACTERS = 8, 600
CHECKED_EVERY = 64  # documents, and at every long one
LONG = 2**16  # characters
PROGRESS = "progress.json"
RESULT = ("statistics", "columns", "text_column", "samples", "commit", "conversations", "parts")


class Params(Protocol):
    @property
    def folder(self) -> str: ...
    @property
    def max_documents(self) -> int | None: ...
    @property
    def max_bytes(self) -> int | None: ...


def check_limits(max_documents: int | None, max_bytes: int | None) -> None:
    for field, value, unit in (("max_documents", max_documents, "document"), ("max_bytes", max_bytes, "byte")):
        if value is not None and (type(value) is not int or value < 1):
            raise InvalidInput(f"Give 1 {unit} or more, or leave it empty for all.", field=field)


class Progress:
    """How many shards are whole, and where in the source the next one begins."""

    def __init__(self, params: Any, source: "Source") -> None:
        from jobs.ml.documents import shards
        from jobs.ml.store import fingerprint, read_json_if_there

        self.folder = Path(params.folder)
        self.plan = {"params": asdict(params), "commit": source.commit, "mark": fingerprint(source.mark)}
        begun = read_json_if_there(self.folder / PROGRESS)
        if begun.get("plan") != self.plan:
            begun = {"plan": self.plan, "shards": 0, "documents": 0, "state": None}
        self.shards, self.documents, self.state = begun["shards"], begun["documents"], begun["state"]
        for stale in (*shards(self.folder)[self.shards :], *self.folder.glob(".*"), self.folder / "manifest.json"):
            stale.unlink(missing_ok=True)
        self.save(self.shards, self.documents, self.state)

    def save(self, shards: int, documents: int, state: Any) -> None:
        from jobs.ml.store import write_json

        kept = {"plan": self.plan, "shards": shards, "documents": documents, "state": state}
        write_json(self.folder / PROGRESS, kept)


def finished(params: Any) -> dict[str, Any] | None:
    """The result of an earlier attempt that came to its end."""
    from jobs.ml.store import read_manifest

    manifest = read_manifest(Path(params.folder))
    return {name: manifest[name] for name in RESULT} if manifest and manifest["params"] == asdict(params) else None


def bring(params: Any, source: "Source", name: str, ctx: Context) -> dict[str, Any]:
    """Read the source into the folder and describe what came. Raises Unusable and what the source raises."""
    return describe(params, source, read(params, source, name, ctx), ctx)


def read(params: Params, source: "Source", name: str, ctx: Context) -> "DocumentStatistics":
    from jobs.ml.disk import require_space
    from jobs.ml.document_statistics import DocumentStatistics
    from jobs.ml.documents import DocumentWriter

    begun = Progress(params, source)
    limited = params.max_documents or params.max_bytes
    require_space(begun.folder, 0 if limited else source.largest, f"The text of {name}")
    limit = params.max_documents if source.unit == "documents" else None
    ctx.stage("read", total=min(filter(None, (limit, source.total)), default=None), unit=source.unit)
    statistics = DocumentStatistics()
    for document in kept(begun, source):
        statistics.add(document)
        ctx.check()
    ctx.log(f"documents are {source.shape.spoken} of {name}; {statistics.documents:,} are there")
    writer = DocumentWriter(begun.folder, begun.shards, begun.documents, source.shape.conversations)
    try:
        write(params, source, begun, (writer, statistics), ctx)
    finally:
        writer.close()
    if not statistics.documents:
        raise Unusable(nothing(source, name))
    return statistics


def nothing(source: "Source", name: str) -> str:
    """Why no document came."""
    counts = source.counts
    broken = (
        f" and {counts.broken_skipped:,} broken, the first: {counts.broken_first[0]}" if counts.broken_first else "."
    )
    return f"{name} has no document with text: {counts.empty_dropped:,} are empty{broken}"


def kept(begun: Progress, source: "Source") -> "Iterator[Document]":
    """The documents that earlier attempts wrote. A source that goes on after them has to know them again."""
    from jobs.ml.conversations import text_of
    from jobs.ml.documents import read_conversations, read_documents

    reader = read_conversations if source.shape.conversations else read_documents
    for document in reader(begun.folder) if begun.shards else ():
        if begun.state and source.sieve.seen is not None:
            source.sieve.seen.add(text_of(document))
        yield document


def write(
    params: Params,
    source: "Source",
    begun: Progress,
    sinks: "tuple[DocumentWriter, DocumentStatistics]",
    ctx: Context,
) -> None:
    """What `begun` has not yet. A source without a state is read from its start, past what is there."""
    from jobs.ml.conversations import text_of

    writer, statistics = sinks
    to_skip = 0 if begun.state else begun.documents
    full = False
    for n, group in enumerate(source.groups(begun.state)):
        if n % CHECKED_EVERY == 0 or (group and len(group[0]) > LONG):
            ctx.reach(source.position())
        if to_skip:
            to_skip -= len(group)
            group = []
        for document in group:
            text = text_of(document)
            if full := statistics.would_exceed(text, params.max_documents, params.max_bytes):
                if not statistics.documents:
                    raise Unusable("The first document is longer than that.", "Give more bytes.", "max_bytes")
                break
            statistics.add(document, text)
            writer.add(document, text)
        if writer.full:
            writer.finish_shard()
            begun.save(writer.shards, writer.documents, source.state())
        if full or (not to_skip and statistics.documents == params.max_documents):
            break
    writer.finish_shard()
    begun.save(writer.shards, writer.documents, source.state())


def describe(params: Params, source: "Source", statistics: "DocumentStatistics", ctx: Context) -> dict[str, Any]:
    from jobs.ml.documents import shards
    from jobs.ml.store import write_manifest

    folder = Path(params.folder)
    ctx.stage("describe", total=source.largest or None, unit="bytes")
    read_as = {"read_as": source.shape.name} if source.shape.conversations else {}
    result = {
        "statistics": {**read_as, **statistics.summary(), **source.told()},
        "columns": source.columns,
        "text_column": source.shape.choice,
        "samples": samples(folder, statistics.documents, source.shape.conversations),
        "commit": source.commit,
        "conversations": source.shape.conversations,
        "parts": source.told_parts(),
    }
    sources = source.sources(counter(ctx))
    names = [path.name for path in shards(folder)]
    write_manifest(folder, names, kind="dataset", params=asdict(params), sources=sources, **result)  # type: ignore[call-overload]
    (folder / PROGRESS).unlink()
    return result


def samples(folder: Path, documents: int, conversations: bool) -> "list[str] | list[list[Message]]":
    """The beginnings of documents spread over the data. NUL shows as ␀: databases refuse it."""
    from jobs.ml.conversations import beginning
    from jobs.ml.documents import read_conversations, read_documents

    n = min(SAMPLES, documents)
    places = [(2 * i + 1) * documents // (2 * n) for i in range(n)]
    if conversations:
        found = [beginning(next(read_conversations(folder, place)), SAMPLE_CHARACTERS) for place in places]
        return [[{**message, "content": shown(message["content"])} for message in said] for said in found]
    return [shown(next(read_documents(folder, place))[:SAMPLE_CHARACTERS]) for place in places]


def shown(text: str) -> str:
    return text.replace("\0", "␀")
