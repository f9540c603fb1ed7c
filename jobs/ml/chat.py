"""Conversations as text, by the chat template of the tokenizer, with the stretches that one role says."""

from collections.abc import Sequence
from typing import Any

from jobs.ml.conversations import Message
from jobs.ml.errors import Unusable, WithHint

Span = tuple[int, int]  # characters


class BadConversation(WithHint):
    """The template refuses these messages."""


class ChatTemplate:
    """transformers renders in a sandbox: a template is a program, and anyone may have written it."""

    def __init__(self, tokenizer: Any, role: str = "all") -> None:
        """role: whose words `render` points out. Raises Unusable where there is no template."""
        if not has_template(tokenizer):
            raise Unusable(
                "The tokenizer has no chat template.",
                "Tokenize conversations as the plain text of the dataset.",
                "chat",
            )
        self.template: str = tokenizer.get_chat_template()
        self.words: dict[str, Any] = dict(tokenizer.special_tokens_map)
        self.bos = str(tokenizer.bos_token or "")
        self.role = role
        self.marks_assistant = role == "assistant" and "generation" in self.template

    def render(self, messages: Sequence[Message]) -> tuple[str, list[Span] | None]:
        """The text, and where the role speaks; None for "all". A BOS at its beginning is left to the row's.

        Raises BadConversation."""
        text, spans = self.marked(messages) if self.marks_assistant else (self.text(messages), [])
        if self.role == "all":
            return self.without_bos(text), None
        spans = spans or self.spans(text, messages)
        cut = len(text) - len(self.without_bos(text))
        return text[cut:], [(max(0, start - cut), end - cut) for start, end in spans if end > cut]

    def without_bos(self, text: str) -> str:
        return text.removeprefix(self.bos)

    def text(self, messages: Sequence[Message], **options: Any) -> str:
        return self.call(messages, **options)[0][0]

    def marked(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """As the template's own {% generation %} blocks say."""
        texts, spans = self.call(messages, return_assistant_tokens_mask=True)
        return texts[0], [(start, end) for start, end in spans[0]]

    def call(self, messages: Sequence[Message], **options: Any) -> Any:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            return render_jinja_template(
                conversations=[list(messages)], chat_template=self.template, **self.words, **options
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise BadConversation(f"The chat template refuses a conversation: {error}") from error

    def spans(self, text: str, messages: Sequence[Message]) -> list[Span]:
        """From what the template writes before an answer to what it has written after it; where the beginning of a
        conversation is rendered in another way without its end, the words of the message alone."""
        found = []
        place = 0
        for n, message in enumerate(messages):
            content = message["content"].strip()
            at = text.find(content, place)
            inner = (at, at + len(content)) if at >= 0 else (place, place)
            if message["role"] == self.role:
                found.append(self.outer(text, messages, n) or inner)
            place = inner[1]
        return found

    def outer(self, text: str, messages: Sequence[Message], n: int) -> Span | None:
        try:
            prompt = {"add_generation_prompt": True} if self.role == "assistant" else {}
            before = self.text(messages[:n], **prompt) if n else ""
            after = self.text(messages[: n + 1])
        except BadConversation:
            return None
        fits = text.startswith(after) and after.startswith(before)
        return (len(before), len(after)) if fits else None


def has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))
