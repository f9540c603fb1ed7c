"""Conversations as people keep them, recognised by columns and content, as lists of messages with a role and a text."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jobs.ml import text_files
from jobs.ml.errors import CorruptData
from jobs.ml.text_files import Counts, pieces
from jobs.ml.text_rows import TYPES, Row, as_text

Message = dict[str, str]  # role, content
Document = str | list[Message]

ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "customer"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai", "function_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}
ROLE = 16  # characters, more than a role takes in a transcript
USUAL = {"messages": "OpenAI", "conversations": "ShareGPT", "conversation": "LMSYS"}  # column → who calls it so
QUESTIONS = ("instruction", "prompt", "question")
CONTEXTS = ("input", "context")
ANSWERS = ("output", "completion", "response", "answer")
TURNS = re.compile(r"\n\n(Human|Assistant):")  # as in the preference pairs of Anthropic


@dataclass(frozen=True)
class Shape:
    """What makes a document of a row: `read` these columns. It raises CorruptData with the place it is given."""

    name: str  # what people call it
    columns: tuple[str, ...]
    read: Callable[[Row, str], Document]
    choice: str = ""  # the column to choose for the same again; empty: found by itself

    @property
    def conversations(self) -> bool:
        return self.name != "text"

    @property
    def spoken(self) -> str:
        return f"{self.name} in “{'”, “'.join(self.columns)}”"


def plain(column: str) -> Shape:
    return Shape("text", (column,), lambda row, where: as_text(row.get(column), where, column), column)


def recognise(rows: list[Row], chosen: str, preference: str) -> Shape | None:
    """How these rows hold conversations: in the chosen column, or else in the one that looks like it; None if not.

    preference: of pairs of answers, "chosen" or "rejected".
    """
    names = dict.fromkeys(name for row in rows for name in row)
    talking = [name for name in names if any(is_conversation(row.get(name)) for row in rows)]
    if chosen:
        return in_column(chosen) if chosen in talking else None
    if column := next((name for name in USUAL if name in talking), ""):
        return in_column(column)
    if {"chosen", "rejected"} <= names.keys():
        return in_pairs(names, preference, rows)
    if len(talking) == 1:
        return in_column(talking[0])
    texts = {name: None for name in names if any(isinstance(row.get(name), str) for row in rows)}
    return None if "text" in texts else in_instructions(texts)


def is_conversation(value: Any) -> bool:
    """A list of objects that say who speaks; datasets of the hub may have it as an object of lists."""
    keys = value if isinstance(value, dict) else value[0] if isinstance(value, list) and value else ()
    held = value.values() if isinstance(value, dict) else ([],)
    pairs = isinstance(keys, dict) and ({"role", "content"} <= keys.keys() or {"from", "value"} <= keys.keys())
    return pairs and all(isinstance(item, list) for item in held)


def in_column(column: str) -> Shape:
    name = f"{USUAL[column]} conversations" if column in USUAL else "conversations"
    return Shape(name, (column,), lambda row, where: messages(row.get(column), where), column)


def in_pairs(names: dict[str, None], preference: str, rows: list[Row]) -> Shape | None:
    answers = [row.get(preference) for row in rows]
    by_turns = any(isinstance(answer, str) and TURNS.match(answer) for answer in answers)
    if "prompt" not in names and not by_turns and not any(is_conversation(answer) for answer in answers):
        return None
    columns = ("prompt", preference) if "prompt" in names else (preference,)

    def read(row: Row, where: str) -> list[Message]:
        answer = side(row.get(preference), "assistant", where)
        begins_itself = any(message["role"] == "user" for message in answer)
        return answer if begins_itself else [*side(row.get("prompt"), "user", where), *answer]

    return Shape(f"preference pairs, the {preference} answers", columns, read)


def side(value: Any, role: str, where: str) -> list[Message]:
    """One side of a pair: messages, a text with turns, or what `role` says."""
    if not isinstance(value, str):
        return messages(value, where)
    if not TURNS.match(value):
        return [{"role": role, "content": value}]
    parts = TURNS.split(value)[1:]
    return [
        {"role": ROLES[who.lower()], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def in_instructions(names: dict[str, None]) -> Shape | None:
    question, context, answer = (
        next((name for name in known if name in names), "") for known in (QUESTIONS, CONTEXTS, ANSWERS)
    )
    if not question or not answer:
        return None

    def read(row: Row, where: str) -> list[Message]:
        asked, about, said = (
            as_text(row.get(name), where, name) if name else "" for name in (question, context, answer)
        )
        if bool(asked.strip()) != bool(said.strip()):
            raise CorruptData(f"{where} has no “{answer if asked.strip() else question}”.")
        asked = f"{asked}\n\n{about}" if about.strip() else asked
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]

    return Shape("instructions", tuple(name for name in (question, context, answer) if name), read)


def messages(value: Any, where: str) -> list[Message]:
    if value is None:
        return []
    if isinstance(value, dict):
        columns = [items if isinstance(items, list) else [] for items in value.values()]
        value = [dict(zip(value, items, strict=True)) for items in zip(*columns, strict=False)]
    if not isinstance(value, list):
        raise CorruptData(f"{where} holds a {kind_of(value)}, not a list of messages.")
    return [message(item, f"{where}, message {n}") for n, item in enumerate(value, 1)]


def message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise CorruptData(f"{where} is a {kind_of(item)}, not an object with role and content.")
    said = item.get("role", item.get("from"))
    role = ROLES.get(str(said).strip().lower())
    if role is None:
        raise CorruptData(f"{where} is of an unknown role, {str(said)[:60]!r}.", f"Known are {', '.join(ROLES)}.")
    content = item.get("content", item.get("value"))
    if content is None and item.get("tool_calls"):
        content = json.dumps(item["tool_calls"], ensure_ascii=False)
    return {"role": role, "content": content_text(content, where)}


def content_text(content: Any, where: str) -> str:
    """A text, or a list of parts each of which is text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise CorruptData(f"{where} has no content." if content is None else f"{where} holds a {kind_of(content)}.")
    texts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise CorruptData(f"{where} holds something else than text.", "Pictures and sounds cannot be read.")
    return "".join(texts)


def kind_of(value: Any) -> str:
    return TYPES.get(type(value), type(value).__name__)


def transcript(conversation: list[Message]) -> str:
    """A conversation as plain text: a block for each message, "role: content", with blank lines between."""
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in conversation)


def text_of(document: Document) -> str:
    return document if isinstance(document, str) else transcript(document)


def beginning(conversation: list[Message], characters: int) -> list[Message]:
    """The first messages, the last of them cut, with that many characters together."""
    said: list[Message] = []
    for message in conversation:
        if characters <= 0:
            break
        said.append({**message, "content": message["content"][:characters]})
        characters -= len(message["content"])
    return said


def parts(conversation: list[Message], counts: Counts) -> Iterator[list[Message]]:
    """A conversation, or several where it is longer than LONGEST: cut between messages, or else inside of one."""
    held: list[Message] = []
    length = 0
    for message in conversation:
        for n, content in enumerate(pieces(message["content"], Counts(), text_files.LONGEST - ROLE)):
            more = ROLE + len(content)
            if held and (n or length + more > text_files.LONGEST):
                yield held
                held, length = [], 0
                counts.cut_pieces += 1
            held.append({"role": message["role"], "content": content})
            length += more
    yield held
