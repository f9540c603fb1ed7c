"""Rows of JSON lines, JSON arrays and CSV, one at a time, and the column that holds the text."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.text_files import LONGEST_LINE, OpenFile

LOOKED_AT = 200  # rows, to learn the columns
MOST_COLUMNS = 200
BETWEEN = re.compile(r"[\s,]*")
Row = dict[str, Any]
Columns = list[dict[str, str]]  # [{"name", "type"}]
OnBroken = Callable[[CorruptData], None]  # raises it, or takes note and lets the rest be read
TYPES = {str: "text", bool: "yes/no", int: "number", float: "number", list: "list", dict: "object"}


def lines(stream: "IO[str] | Rejoined", name: str, broken: OnBroken) -> Iterator[tuple[int, str]]:
    """With their numbers and ends. One that is too long to be held is broken; it is passed over in parts."""
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if len(line) < LONGEST_LINE or line.endswith("\n"):
            yield number, line
            continue
        error = CorruptData(
            f"{name}, line {number} is longer than {LONGEST_LINE // 2**20} Mi characters.",
            "In JSON lines each record has a line of its own. A single long text can be given as .txt.",
        )
        broken(error)
        while line and not line.endswith("\n"):
            line = stream.readline(LONGEST_LINE)


def json_rows(opened: OpenFile, name: str, broken: OnBroken) -> Iterator[tuple[str, Row]]:
    """(where, row) for each line, or for each element where the file is one array."""
    buffer = opened.text.read(2**16)
    while buffer and buffer.isspace():
        buffer = opened.text.read(2**16)
    if buffer.lstrip().startswith("["):
        yield from array_rows(opened.text, buffer, name, broken)
        return
    for number, line in lines(Rejoined(buffer, opened.text), name, broken):
        if line.strip():
            where = f"{name}, line {number}"
            try:
                row = as_row(parsed(line, where), where)
            except CorruptData as error:
                broken(error)
            else:
                yield where, row


class Rejoined:
    """A stream with what was read of it put back in front."""

    def __init__(self, head: str, rest: IO[str]) -> None:
        self.head, self.rest = head, rest

    def readline(self, limit: int) -> str:
        if not self.head:
            return self.rest.readline(limit)
        line, end, self.head = self.head.partition("\n")
        return line + end if end else line + self.rest.readline(limit - len(line))


def parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        cut = "" if line.endswith("\n") else " The file ends in the middle of a line: it may be cut off."
        said = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply or a number too long"
        raise CorruptData(f"{where} is not JSON: {said}.{cut}", "Each line must be one whole JSON object.") from error


def as_row(value: Any, where: str) -> Row:
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, dict):
        return value
    raise CorruptData(
        f"{where} is a JSON {TYPES.get(type(value), 'null')}, not an object.", 'Write {"text": …} a line.'
    )


def array_rows(stream: IO[str], buffer: str, name: str, broken: OnBroken) -> Iterator[tuple[str, Row]]:
    """The elements of one JSON array, holding one of them at a time. After one that is not JSON nothing can be read."""
    decoder, position, number, ended = json.JSONDecoder(), buffer.index("[") + 1, 0, False
    while True:
        position = BETWEEN.match(buffer, position).end()  # type: ignore[union-attr]
        where = f"{name}, element {number + 1}"
        if buffer.startswith("]", position):
            return
        try:
            value, after = decoder.raw_decode(buffer, position)
        except (ValueError, RecursionError):
            after = len(buffer)
            if ended or after - position > LONGEST_LINE:
                broken(CorruptData(f"{where} is not whole JSON: the file may be cut off or damaged."))
                return
        if after < len(buffer):
            number, position = number + 1, after
            try:
                row = as_row(value, where)
            except CorruptData as error:
                broken(error)
            else:
                yield where, row
            continue
        # Twice as much each time, so that a long element is not parsed again and again.
        more = stream.read(max(2**16, len(buffer) - position))
        ended, buffer, position = not more, buffer[position:] + more, 0


def csv_rows(opened: OpenFile, name: str, broken: OnBroken) -> Iterator[tuple[str, Row]]:
    source = (line for _, line in lines(opened.text, name, broken))
    head = next(source, "")
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(chained(head, source), delimiter=delimiter_of(head))
    names: list[str] = []
    while (values := next_values(reader, name, broken)) is not None:
        if not names:
            names = [value.strip() or f"column {n}" for n, value in enumerate(values, 1)]
        elif any(value.strip() for value in values[len(names) :]):
            error = CorruptData(
                f"{name}, line {reader.line_num} has {len(values)} values, but the header names {len(names)}.",
                "Put texts that contain the delimiter into quotation marks.",
            )
            broken(error)
        elif values:
            yield f"{name}, line {reader.line_num}", dict(zip(names, values, strict=False))


def next_values(reader: Any, name: str, broken: OnBroken) -> list[str] | None:
    while True:
        try:
            return next(reader, None)
        except csv.Error as error:
            hint = "A quotation mark may be opened and never closed." if "field larger" in str(error) else ""
            broken(CorruptData(f"{name}, line {reader.line_num} is not CSV: {error}.", hint))


def chained(head: str, rest: Iterable[str]) -> Iterator[str]:
    yield head
    yield from rest


def delimiter_of(head: str) -> str:
    """The one of , ; tab and | that the header has most of, outside of quotation marks."""
    bare = re.sub(r'"[^"]*"', "", head)
    return max(",;\t|", key=bare.count)


def columns_of(rows: Iterable[Row]) -> Columns:
    """The names in the order they appear, with what their values are; "mixed" where they differ."""
    found: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            kinds = found.setdefault(name, set())
            if value is not None:
                kinds.add(TYPES.get(type(value), type(value).__name__))
    return [
        {"name": name, "type": kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "empty"}
        for name, kinds in list(found.items())[:MOST_COLUMNS]
    ]


def as_numbers(rows: list[Row]) -> list[Row]:
    """CSV rows, in which everything is text, with numbers where a value reads as one."""
    return [{name: number(value) for name, value in row.items()} for row in rows]


def number(text: str) -> str | float | None:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return text


def choose_column(columns: Columns, chosen: str, where: str, only_text: bool = False) -> str:
    """The one that was named, else “text”, else the only one with text. Raises Unusable.

    only_text: numbers in this format are text that looks like them.
    """
    types = {column["name"]: column["type"] for column in columns}
    texts = [name for name, kind in types.items() if kind in ("text", "mixed")]
    listed = ", ".join(f"{name} ({kind})" for name, kind in types.items()) or "none"
    if chosen:
        if chosen not in types:
            raise Unusable(f"{where} has no column “{chosen}”. It has: {listed}.", "Choose one of them.", "text_column")
        if chosen not in texts and types[chosen] != "empty" and not only_text:
            said = f"The column “{chosen}” of {where} is of type {types[chosen]}. It has: {listed}."
            raise Unusable(said, "Choose one with text.", "text_column")
        return chosen
    if "text" in texts:
        return "text"
    if len(texts) == 1:
        return texts[0]
    if texts:
        said = f"{where} has several columns with text: {', '.join(texts)}."
        raise Unusable(said, "Say which holds the documents.", "text_column")
    raise Unusable(f"{where} has no column with text. It has: {listed}.", "", "text_column")


def as_text(value: Any, where: str, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        kind = TYPES.get(type(value), type(value).__name__)
        raise CorruptData(f"{where}: column “{column}” holds a {kind}, not text.", "Choose another column.")
    return value
