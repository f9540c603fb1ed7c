"""Reads sources of text as the job does, for tests."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from jobs.ml.conversations import Document
from jobs.ml.local_documents import LocalDocuments

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path, column: str = "", **options) -> list[Document]:
    return taken(LocalDocuments(path, column, **options))


def taken(source: LocalDocuments) -> list[Document]:
    return [document for group in source.groups() for document in group]


def table(path: Path, **columns) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path
