"""The documents of a dataset of the hub, streamed: nothing but its text comes to the disk."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from jobs.ml.conversations import ANSWERS, CONTEXTS, QUESTIONS, Document, plain, recognise
from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.hub import Patience, Repository, check_access, explained, look_up
from jobs.ml.sieve import Sieve, Sieved
from jobs.ml.text_rows import LOOKED_AT, Columns, Row, choose_column, columns_of

FEW = 20  # rows, to recognise conversations
TEXT_TYPES = ("string", "large_string")
PARTS = ("prompt", "chosen", "rejected", *QUESTIONS, *CONTEXTS, *ANSWERS)  # columns that may be part of a conversation


class HubDocuments(Sieved):
    """`counts` and `position` are those of what `groups` has given so far."""

    unit = "documents"
    largest = 0

    def __init__(
        self,
        id: str,
        config: str,
        split: str,
        revision: str,
        text_column: str,
        patience: Patience,
        *,
        preference: str = "chosen",
        skip_broken: bool = False,
        deduplicate: bool = False,
    ) -> None:
        from datasets import load_dataset_builder

        self.repository: Repository = look_up("dataset", id, revision, patience=patience)
        self.commit, self.split = self.repository.commit, split or "train"
        check_access(self.repository, patience)
        with refusals(self.repository):
            # The prefix keeps a folder of that name in the working directory from being taken for it.
            path, commit = f"hf://datasets/{id}", self.repository.commit
            self.builder = load_dataset_builder(path, config or None, revision=commit)
            self.rows: Any = self.builder.as_streaming_dataset(split=self.split)
            self.columns = self.known_columns()
            shape = recognise(self.first_rows(text_column), text_column, preference)
        self.shape = shape or plain(choose_column(self.columns, text_column, id))
        self.rows = self.rows.select_columns(list(self.shape.columns))
        about = (self.builder.info.splits or {}).get(self.split)
        self.total = about.num_examples if about and about.num_examples else None
        self.largest = about.num_bytes or 0 if about else 0
        self.mark = [
            self.repository.endpoint,
            self.builder.config.name,
            self.split,
            *self.shape.columns,
        ]
        self.sieve = Sieve(skip_broken, deduplicate)
        self.done = 0

    def known_columns(self) -> Columns:
        if self.rows.features is None:
            return columns_of(islice(self.rows, LOOKED_AT))
        return [
            {"name": name, "type": "text" if getattr(feature, "dtype", "") in TEXT_TYPES else kind(feature)}
            for name, feature in self.rows.features.items()
        ]

    def first_rows(self, text_column: str) -> list[Row]:
        """A few, of the columns that may hold a conversation alone: others may be pictures."""
        texts = {column["name"] for column in self.columns if column["type"] == "text"}
        mixed = {column["name"] for column in self.columns} - texts
        looked_at = {text_column} & mixed if text_column else (texts & set(PARTS)) | (mixed & self.nested())
        if not looked_at or ("text" in texts and not looked_at & mixed):
            return []
        names = [column["name"] for column in self.columns if column["name"] in looked_at | ({"text"} & texts)]
        return list(islice(self.rows.select_columns(names), FEW))

    def nested(self) -> set[str]:
        """The columns whose values are lists or objects, as far as the dataset says it."""
        from datasets.features import LargeList, List

        features = self.rows.features or {column["name"]: [] for column in self.columns if column["type"] == "list"}
        return {name for name, feature in features.items() if isinstance(feature, list | dict | List | LargeList)}

    def position(self) -> int:
        """Rows read, of `total`."""
        return self.done

    def state(self) -> dict[str, Any]:
        """Where to go on after the group that came last."""
        return {"rows": self.rows.state_dict(), "counts": self.sieve.state(), "done": self.done}

    def groups(self, state: dict[str, Any] | None = None) -> Iterator[list[Document]]:
        """The documents of one row after the other. Raises what `explained` raises, CorruptData, Unusable."""
        if state:
            self.rows.load_state_dict(state["rows"])
            self.sieve.resume(state["counts"])
            self.done = state["done"]
        with refusals(self.repository):
            for row in self.rows:
                self.done += 1
                where = f"row {self.done} of {self.repository.id}"
                yield self.sieve.documents(row, where, self.shape)

    def sources(self, advance: Callable[[int], None]) -> list[dict[str, Any]]:
        """Name, size and checksum, as the hub has them, of the files of the split."""
        known = {file.name: file for file in self.repository.files}
        urls = (self.builder.config.data_files or {}).get(self.split, [])
        names = [str(url).partition(f"@{self.repository.commit}/")[2] for url in urls]
        files = [known[name] for name in names if name in known]
        return [{"name": file.name, "bytes": file.size, "sha256": file.sha256 or None} for file in files]


def kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", "") or type(feature).__name__.lower())


@contextmanager
def refusals(repository: Repository) -> Iterator[None]:
    """What `datasets` says against a choice, as Unusable for the field that can change it."""
    from datasets.exceptions import DatasetGenerationError

    id = repository.id
    try:
        with explained("dataset", id, repository.commit):
            yield
    except FileNotFoundError as error:  # several classes, all of which mean that there is nothing to read
        hint = "Choose a dataset with parquet, jsonl, csv or txt files."
        raise Unusable(f"{id}: {said_by(error)}", hint) from error
    except DatasetGenerationError as error:
        raise CorruptData(f"{id}: {said_by(error.__cause__ or error)}") from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        hint = "Try the revision refs/convert/parquet, which the hub makes of many datasets."
        raise Unusable(f"{id} needs a program of its own to be read, which is never run.", hint, "revision") from error
    except ValueError as error:
        if isinstance(error, CorruptData | Unusable):
            raise
        if isinstance(error, UnicodeError) or "pyarrow" in type(error).__module__:
            raise CorruptData(f"{id}: {said_by(error)}") from error
        raise Unusable(f"{id}: {said_by(error)}", "", field_of(str(error))) from error


def field_of(said: str) -> str:
    if re.search(r"\bsplit", said, re.IGNORECASE):
        return "split"
    return "config" if re.search(r"config", said, re.IGNORECASE) else "source"


def said_by(error: BaseException) -> str:
    """In one line, without the example of what to write in a program."""
    said = " ".join(str(error).partition("Example of usage")[0].split())
    return said[:500] or type(error).__name__
