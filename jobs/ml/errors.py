MOST_SAID = 2000  # characters of a message
WITHIN_WORDS = "\u200c\u200d\u00ad"  # non-joiner, joiner, soft hyphen


def printable(text: str) -> str:
    """What strangers wrote, on one line and fit for a page or a terminal: what cannot be printed (control characters,
    those that turn the direction, lone surrogates …) is replaced, but for what joins and parts letters in a word."""
    kept = (c if c.isprintable() or c in WITHIN_WORDS else " " if c.isspace() else "\ufffd" for c in text[:MOST_SAID])
    return "".join(kept)


class WithHint(ValueError):
    """`hint` says what to do about it. Both may quote files of strangers."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(printable(message))
        self.hint = printable(hint)


class CorruptData(WithHint):
    """A file that is not, or no longer, what it should be."""


class Unusable(WithHint):
    """A source that someone chose and that cannot be what they want; `field` names the choice to change."""

    def __init__(self, message: str, hint: str = "", field: str = "source") -> None:
        super().__init__(message, hint)
        self.field = field
