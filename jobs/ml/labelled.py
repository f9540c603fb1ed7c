"""Texts with labels, out of the source of a dataset: its own files hold the texts alone."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.ml.errors import Unusable

ROWS = 100_000  # read at most
TEXTS = 4000  # kept at most
CLASSES = 8  # the commonest ones
FEWEST = 20  # texts of a class
CHARACTERS = 4000  # of a text: more than a model reads of it here
DISTINCT = 1000  # labels: more are no classes
Labelled = tuple[str, str, str]  # text, label, second label


@dataclass(frozen=True)
class Columns:
    text: str
    label: str
    second: str = ""  # a label that goes along with the first one where it should not

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(filter(None, (self.text, self.label, self.second))))

    def of(self, row: dict[str, Any]) -> Labelled | None:
        """None where one of them is missing."""
        text, label = row.get(self.text), spoken(row.get(self.label))
        second = spoken(row.get(self.second)) if self.second else ""
        whole = isinstance(text, str) and text.strip() and label and (second or not self.second)
        return (str(text)[:CHARACTERS], label, second) if whole else None


def spoken(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()[:200] if isinstance(value, str | int | bool) else ""


def local_rows(source: Path, columns: Columns, encoding: str = "") -> Iterator[dict[str, Any]]:
    """Those that can be read. Raises CorruptData where none can, Unusable."""
    from jobs.ml.local_documents import LocalDocuments

    documents = LocalDocuments(source, columns.text, encoding=encoding, skip_broken=True)
    require(columns, {column["name"] for column in documents.columns}, str(source))
    for file in documents.files:
        for _, row in documents.unbroken(file, columns.names):
            yield row


def hub_rows(id: str, config: str, split: str, revision: str, columns: Columns, patience: Any) -> Iterator[Any]:
    """Classes by their names, where the dataset has some. Raises what HubDocuments raises."""
    from datasets import ClassLabel

    from jobs.ml.hub_documents import HubDocuments, refusals

    documents = HubDocuments(id, config, split, revision, columns.text, patience)
    require(columns, {column["name"] for column in documents.columns}, id)
    with refusals(documents.repository):
        rows: Any = documents.builder.as_streaming_dataset(split=documents.split).select_columns(columns.names)
        named = {name: kind for name, kind in (rows.features or {}).items() if isinstance(kind, ClassLabel)}
        for row in rows:
            yield row | {
                name: kind.int2str(row[name])
                for name, kind in named.items()
                if row[name] is not None and row[name] >= 0
            }


def require(columns: Columns, known: set[str], where: str) -> None:
    for field, name in (("text_column", columns.text), ("label_column", columns.label), ("second", columns.second)):
        if name and name not in known:
            said = f"{where} has no column “{name}”. It has: {', '.join(sorted(known))}."
            raise Unusable(said, "Choose one of them.", "second_label_column" if field == "second" else field)


def sample(
    rows: Iterable[dict[str, Any]],
    columns: Columns,
    *,
    texts: int = TEXTS,
    seed: int = 0,
    check: Callable[[], None] = lambda: None,
) -> list[Labelled]:
    """At most as many texts of each of the commonest classes, drawn from the first ROWS rows. Raises Unusable."""
    chosen: dict[str, list[Labelled]] = {}
    draw = random.Random(seed)
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        if number % 256 == 0:
            check()
        if number >= ROWS:
            break
        if (found := columns.of(row)) is None:
            continue
        label = found[1]
        seen[label] = seen.get(label, 0) + 1
        if len(seen) > DISTINCT:
            said = f"The column “{columns.label}” has more than {DISTINCT:,} different values."
            raise Unusable(said, "Choose one with classes.", "label_column")
        kept = chosen.setdefault(label, [])
        if len(kept) < texts // 2:
            kept.append(found)
        elif (place := draw.randrange(seen[label])) < len(kept):
            kept[place] = found
    commonest = sorted(chosen, key=lambda label: (-seen[label], label))[: min(CLASSES, max(2, texts // FEWEST))]
    return balanced({label: chosen[label] for label in commonest}, columns, texts, draw)


def balanced(chosen: dict[str, list[Labelled]], columns: Columns, texts: int, draw: random.Random) -> list[Labelled]:
    """At most as many of each as there is room for; of classes with fewer, all."""
    classes = [label for label in chosen if len(chosen[label]) >= FEWEST]
    if len(classes) < 2:
        said = f"The column “{columns.label}” has fewer than two classes with {FEWEST} texts each."
        raise Unusable(said, "Choose another column, or a larger dataset.", "label_column")
    found: list[Labelled] = []
    for label in classes:
        draw.shuffle(chosen[label])
        found += chosen[label][: texts // len(classes)]
    draw.shuffle(found)
    return found
