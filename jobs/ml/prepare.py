"""From what a dataset holds, plain texts or conversations, to the text that is tokenized."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs.ml.chat import BadConversation, ChatTemplate, Span, has_template
from jobs.ml.conversations import Message
from jobs.ml.errors import Unusable
from jobs.ml.junk import STRENGTHS, sift
from jobs.ml.token_config import TokenConfig


@dataclass(frozen=True)
class Document:
    text: str  # "" where it was dropped, or empty from the beginning
    counted: list[Span] | None = None  # what may be counted; None: all
    removed: dict[str, int] = field(default_factory=dict)  # characters by rule of the junk filter
    dropped: str = ""  # by which rule


class Preparation:
    """A function of one document, so that an interrupted run goes on to the same end."""

    def __init__(self, config: TokenConfig, tokenizer: Any, conversations: bool = False) -> None:
        """conversations: the documents are lists of messages where `column` says so. Raises Unusable."""
        self.rules = STRENGTHS[config.junk].rules
        self.template: ChatTemplate | None = None
        self.note = ""
        if config.train_on != "all" and not conversations:
            raise Unusable(
                "The dataset holds plain text: nothing in it tells who says what.",
                "Train on every token, or choose a dataset of conversations.",
                "train_on",
            )
        if not conversations or config.chat == "transcript":
            return
        if has_template(tokenizer) or config.chat == "template" or config.train_on != "all":
            self.template = ChatTemplate(tokenizer, config.train_on)
        else:
            self.note = "The tokenizer has no chat template: conversations are tokenized as plain text."

    @property
    def column(self) -> str:
        """Which one of the dataset's is read."""
        return "messages" if self.template else "text"

    def __call__(self, found: str | list[Message]) -> Document:
        return self.text(found) if isinstance(found, str) else self.conversation(found)

    def all(self, stream: Iterable[str | list[Message]]) -> Iterator[Document]:
        return map(self, stream)

    def text(self, text: str) -> Document:
        if not self.rules:
            return Document(text)
        left, removed = sift(text, self.rules)
        return Document(left, None, removed, last(removed) if text and not left else "")

    def conversation(self, messages: list[Message]) -> Document:
        """The filter reads the words of the messages, never the marks of the template. What it would drop in one
        message, such as a short answer, stays; a conversation is dropped for all of its words together."""
        assert self.template is not None  # or there would be no messages
        removed: dict[str, int] = {}
        if self.rules:
            left, whole = sift("\n\n".join(message["content"] for message in messages), self.rules)
            messages = [self.sifted(message, removed) for message in messages]
            if not left:
                return Document("", None, whole, last(whole))
        try:
            text, counted = self.template.render(messages)
        except BadConversation:
            return Document("", dropped="the chat template refuses it")
        return Document(text, counted, removed)

    def sifted(self, message: Message, removed: dict[str, int]) -> Message:
        left, here = sift(message["content"], self.rules)
        if not left:
            return message
        for rule, count in here.items():
            removed[rule] = removed.get(rule, 0) + count
        return {**message, "content": left}


def last(removed: dict[str, int]) -> str:
    return list(removed)[-1] if removed else ""
