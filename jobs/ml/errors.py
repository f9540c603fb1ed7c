class WithHint(ValueError):
    """`hint` says what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class CorruptData(WithHint):
    """A file that is not, or no longer, what it should be."""


class Unusable(WithHint):
    """A source that someone chose and that cannot be what they want; `field` names the choice to change."""

    def __init__(self, message: str, hint: str = "", field: str = "source") -> None:
        super().__init__(message, hint)
        self.field = field
