"""The documents of a dataset on disk: Parquet shards `documents-00000.parquet` with columns index and text.

Those of conversations have them as `messages` too, a list of {role, content}; `text` is their transcript then.
Row groups and shards end where their characters fill up, so the same documents always give the same bytes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.ml.conversations import Document, Message, text_of
from jobs.ml.errors import CorruptData
from jobs.ml.store import read_manifest, sha256, sync

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetWriter

BATCH = 256  # documents held in memory at once while reading
GROUP_CHARACTERS, GROUP_DOCUMENTS = 2**22, 2**13  # a row group holds about this much, and is written at once
SHARD_CHARACTERS = 2**26  # about what an interruption costs


def shards(folder: Path | str) -> list[Path]:
    return sorted(Path(folder).glob("documents-*.parquet"))


def count_documents(folder: Path | str) -> int:
    import pyarrow.parquet as parquet

    return sum(parquet.read_metadata(path).num_rows for path in shards(folder))


def read_documents(folder: Path | str, start: int = 0) -> Iterator[str]:
    """The documents from number `start` on; what comes before is skipped unread.

    Raises FileNotFoundError where there are none.
    """
    yield from read_column(folder, "text", start)


def read_conversations(folder: Path | str, start: int = 0) -> Iterator[list[Message]]:
    """The same of a dataset of conversations, each as its messages."""
    yield from read_column(folder, "messages", start)


def read_column(folder: Path | str, column: str, start: int = 0) -> Iterator[Any]:
    import pyarrow.parquet as parquet

    paths = shards(folder)
    if not paths:
        raise FileNotFoundError(f"{folder} holds no documents: the dataset has not been added.")
    for path in paths:
        with parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if start >= rows:
                    start -= rows
                    continue
                for batch in file.iter_batches(BATCH, row_groups=[group], columns=[column]):
                    yield from batch.column(0).slice(start).to_pylist()
                    start = max(0, start - len(batch))


def holds_conversations(folder: Path | str) -> bool:
    """Have the documents a column of messages beside their text?"""
    return bool((read_manifest(Path(folder)) or {}).get("conversations"))


def check_unchanged(folder: Path | str) -> None:
    """Raises CorruptData where the shards are not those that were written: gone, added, or with other contents.

    Only what has been touched since the dataset was finished is read for it.
    """
    folder = Path(folder)
    files = (read_manifest(folder) or {}).get("files", {})
    finished = (folder / "manifest.json").stat().st_mtime_ns if files else 0
    for name in sorted({*files, *(path.name for path in shards(folder))}) if files else ():
        path, expected = folder / name, files.get(name)
        facts = path.stat() if path.is_file() else None
        if facts is None or expected is None:
            wrong = "is missing" if facts is None else "was not there"
        elif facts.st_size != expected["bytes"]:
            wrong = f"has {facts.st_size:,} bytes instead of {expected['bytes']:,}"
        elif facts.st_mtime_ns > finished and sha256(path) != expected["sha256"]:
            wrong = "has other contents"
        else:
            continue
        raise CorruptData(f"The dataset has changed since it was added: {name} {wrong}.", "Add it again.")


class DocumentWriter:
    """Appends documents to a folder. A shard has its name when it is whole; `shards` and `documents` count those."""

    def __init__(self, folder: Path, shards: int = 0, documents: int = 0, conversations: bool = False) -> None:
        self.folder, self.shards, self.documents = folder, shards, documents
        self.conversations = conversations
        self.held: list[str] = []
        self.messages: list[list[Message]] = []
        self.held_characters = self.shard_characters = self.in_shard = 0
        self.writer: ParquetWriter | None = None

    @property
    def partial(self) -> Path:
        return self.folder / f".documents-{self.shards:05d}.parquet.partial"

    @property
    def full(self) -> bool:
        return self.shard_characters >= SHARD_CHARACTERS

    def add(self, document: Document, text: str = "") -> None:
        """text: of the document, where it is known already."""
        text = text or text_of(document)
        self.held.append(text)
        if not isinstance(document, str) and self.conversations:
            self.messages.append(document)
        self.held_characters += len(text)
        self.shard_characters += len(text)
        if self.held_characters >= GROUP_CHARACTERS or len(self.held) >= GROUP_DOCUMENTS:
            self.write_group()

    def write_group(self) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        first = self.documents + self.in_shard
        columns = {"index": range(first, first + len(self.held)), "text": self.held}
        if self.conversations:
            columns["messages"] = self.messages
        table = pa.table(columns, schema=schema(self.conversations))
        if self.writer is None:
            # The smallest and largest text of a group, in its footer, would help nobody.
            options: dict[str, Any] = {"use_dictionary": False, "write_statistics": ["index"]}
            self.writer = ParquetWriter(self.partial, table.schema, compression="zstd", **options)
        self.writer.write_table(table)
        self.in_shard += len(self.held)
        self.held, self.messages, self.held_characters = [], [], 0

    def finish_shard(self) -> None:
        if self.held:
            self.write_group()
        if self.writer is None:
            return
        self.writer.close()
        sync(self.partial)
        self.partial.replace(self.folder / f"documents-{self.shards:05d}.parquet")
        self.shards, self.documents = self.shards + 1, self.documents + self.in_shard
        self.writer, self.in_shard, self.shard_characters = None, 0, 0

    def close(self) -> None:
        """What is not in a finished shard is dropped."""
        try:
            if self.writer is not None:
                self.writer.close()  # on a full disk this fails too
        finally:
            self.partial.unlink(missing_ok=True)


def schema(conversations: bool = False) -> Any:
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    fields = [("index", pa.int64()), ("text", pa.string())]
    return pa.schema([*fields, ("messages", pa.list_(message))] if conversations else fields)
