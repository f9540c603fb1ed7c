"""Rows of Parquet and Arrow files, a part of the file at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

from jobs.ml.archives import on_disk
from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.text_files import UNREADABLE, SourceFile, reading
from jobs.ml.text_rows import Columns, OnBroken, Row, choose_column

BATCH = 64  # rows held as Python objects at once
LOOKED_AT = 20  # rows, of all columns, to learn what they hold
NAMES = {"string": "text", "large_string": "text", "string_view": "text"}
Part = tuple[Callable[[], float], str, Callable[[], Iterator[Any]]]  # share of the file that is read, name, batches


def table_head(file: SourceFile) -> tuple[Columns, list[Row]]:
    """The columns and the first rows, as far as these can be read."""
    with READERS[file.format](file, None) as (fields, parts):
        rows = list(islice((row for _, _, row in rows_of(file, parts, lambda error: None)), LOOKED_AT))
    return [{"name": field.name, "type": spoken(field.type)} for field in fields], rows


def table_rows(file: SourceFile, columns: tuple[str, ...], broken: OnBroken) -> Iterator[tuple[float, str, Row]]:
    """(share of the file that is done, where, row). Bytes that are no UTF-8 are marked, not refused.

    Raises CorruptData for a file that cannot be opened, Unusable for one without the columns.
    """
    with READERS[file.format](file, list(columns)) as (fields, parts):
        there_are: Columns = [{"name": field.name, "type": "text"} for field in fields]
        for column in columns:
            choose_column(there_are, column, file.name)
        yield from rows_of(file, parts, broken)


def rows_of(file: SourceFile, parts: Iterator[Part], broken: OnBroken) -> Iterator[tuple[float, str, Row]]:
    number = 0
    for done, part, batches in parts:
        try:
            with reading(f"{file.name}, {part}"):
                for batch in batches():
                    share = done()
                    for row in rows_in(batch):
                        number += 1
                        yield share, f"{file.name}, row {number}", row
        except CorruptData as error:
            broken(error)


def rows_in(batch: Any) -> Iterator[Row]:
    for start in range(0, len(batch), BATCH):
        part = batch.slice(start, BATCH)
        columns = [decoded(column) for column in part.columns]
        for values in zip(*columns, strict=True):
            yield dict(zip(part.schema.names, values, strict=True))


def decoded(values: Any) -> list[Any]:
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    try:
        return values.to_pylist()
    except UnicodeDecodeError:
        return [marked(value) for value in values.cast(binary(values.type)).to_pylist()]


def binary(kind: Any) -> Any:
    """The type with bytes in the place of text."""
    import pyarrow as pa

    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(binary(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, binary(field.type)) for field in kind])
    return kind


def marked(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", UNREADABLE)
    if isinstance(value, list):
        return [marked(item) for item in value]
    return {name: marked(item) for name, item in value.items()} if isinstance(value, dict) else value


def spoken(kind: Any) -> str:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return NAMES.get(str(kind), str(kind))


def opened(file: SourceFile) -> Any:
    """What pyarrow reads, here and there in the file: out of an archive it is unpacked first."""
    import pyarrow as pa

    if file.member is None:
        return pa.OSFile(str(file.path))
    with reading(file.name), file.member.open() as stream:
        return pa.PythonFile(on_disk(stream, file.name))


@contextmanager
def parquet_parts(file: SourceFile, columns: list[str] | None) -> Iterator[tuple[Any, Iterator[Part]]]:
    """The fields, and the row groups."""
    from pyarrow.parquet import ParquetFile

    with opened(file) as raw:
        with reading(file.name):
            parquet = ParquetFile(raw, page_checksum_verification=True)
        groups = parquet.num_row_groups
        parts = (
            (
                lambda group=group: group / groups,
                f"row group {group + 1} of {groups} ({parquet.metadata.row_group(group).num_rows:,} rows)",
                lambda group=group: parquet.iter_batches(BATCH, row_groups=[group], columns=columns),
            )
            for group in range(groups)
        )
        yield parquet.schema_arrow, parts


@contextmanager
def arrow_parts(file: SourceFile, columns: list[str] | None) -> Iterator[tuple[Any, Iterator[Part]]]:
    """The fields, and the record batches: of a file each by itself, of a stream all as one part."""
    from pyarrow import ipc

    with opened(file) as raw, reading(file.name):
        magic = raw.read(6)
        raw.seek(0)
        if magic.startswith(b"FEA1"):
            raise Unusable(f"{file.name} is Feather version 1, which is no longer read.", "Write it as version 2.")
        reader = (ipc.open_file if magic == b"ARROW1" else ipc.open_stream)(raw)
        yield reader.schema, file_parts(reader, columns) if magic == b"ARROW1" else stream_parts(reader, raw, columns)


def file_parts(reader: Any, columns: list[str] | None) -> Iterator[Part]:
    n = reader.num_record_batches

    def batches(i: int) -> Iterator[Any]:
        yield sound(reader.get_batch(i), columns)

    for i in range(n):
        yield partial(lambda i: i / n, i), f"record batch {i + 1} of {n}", partial(batches, i)


def stream_parts(reader: Any, raw: Any, columns: list[str] | None) -> Iterator[Part]:
    """One: after a batch that cannot be read nothing says where the next one begins."""
    batches = (sound(batch, columns) for batch in reader)
    yield lambda: raw.tell() / raw.size(), "the stream of record batches", lambda: batches


def sound(batch: Any, columns: list[str] | None) -> Any:
    """These columns of the batch, safe to be read. Raises ArrowInvalid for offsets that lead nowhere."""
    import pyarrow as pa

    batch = batch.select(columns) if columns else batch
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            if not pa.types.is_string(column.type):
                raise
            column.view(pa.binary()).validate(full=True)  # then it is only bytes that are no UTF-8
    return batch


READERS = {"parquet": parquet_parts, "arrow": arrow_parts}
