"""The documents of a dataset on disk: Parquet shards `documents-00000.parquet` with columns index and text.

Row groups and shards end where their characters fill up, so the same documents always give the same bytes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.ml.errors import CorruptData
from jobs.ml.store import read_manifest, sync

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


def read_documents(folder: Path | str, start: int = 0, column: str = "text") -> Iterator[Any]:
    """The documents from number `start` on; what comes before is skipped unread. column: "messages" of conversations.

    Raises FileNotFoundError where there are none.
    """
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
    """Raises CorruptData where the files are not those that the manifest names, by name and size."""
    folder = Path(folder)
    files = (read_manifest(folder) or {}).get("files", {})
    wanted = {name: entry["bytes"] for name, entry in files.items() if name.startswith("documents-")}
    there = {path.name: path.stat().st_size for path in shards(folder)}
    for name in sorted(wanted.keys() | there.keys()) if wanted else ():
        if wanted.get(name) != there.get(name):
            now, then = (f"{n:,} bytes" if n is not None else "missing" for n in (there.get(name), wanted.get(name)))
            raise CorruptData(
                f"The dataset has changed since it was added: {name} is {now}, and was {then}.",
                "Add the dataset again from its source, and tokenize that.",
            )


class DocumentWriter:
    """Appends documents to a folder. A shard has its name when it is whole; `shards` and `documents` count those."""

    def __init__(self, folder: Path, shards: int = 0, documents: int = 0) -> None:
        self.folder, self.shards, self.documents = folder, shards, documents
        self.held: list[str] = []
        self.held_characters = self.shard_characters = self.in_shard = 0
        self.writer: ParquetWriter | None = None

    @property
    def partial(self) -> Path:
        return self.folder / f".documents-{self.shards:05d}.parquet.partial"

    @property
    def full(self) -> bool:
        return self.shard_characters >= SHARD_CHARACTERS

    def add(self, text: str) -> None:
        self.held.append(text)
        self.held_characters += len(text)
        self.shard_characters += len(text)
        if self.held_characters >= GROUP_CHARACTERS or len(self.held) >= GROUP_DOCUMENTS:
            self.write_group()

    def write_group(self) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        first = self.documents + self.in_shard
        table = pa.table({"index": range(first, first + len(self.held)), "text": self.held}, schema=schema())
        if self.writer is None:
            # The smallest and largest text of a group, in its footer, would help nobody.
            options: dict[str, Any] = {"use_dictionary": False, "write_statistics": ["index"]}
            self.writer = ParquetWriter(self.partial, table.schema, compression="zstd", **options)
        self.writer.write_table(table)
        self.in_shard += len(self.held)
        self.held, self.held_characters = [], 0

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


def schema() -> Any:
    import pyarrow as pa

    return pa.schema([("index", pa.int64()), ("text", pa.string())])
