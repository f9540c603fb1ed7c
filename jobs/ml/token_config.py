"""How documents become tokens: plain choices, the same for a page, a job and a preview."""

from dataclasses import dataclass

from jobs.ml.errors import Unusable
from jobs.ml.junk import STRENGTHS

LAYOUTS = {
    "packed": "Packed: documents one after the other",
    "padded": "Padded: each document in rows of its own",
}
BOS = {
    "present": "Yes, where the tokenizer has one",
    "tokenizer": "As the tokenizer does by itself",
    "always": "Always",
    "never": "Never",
}
SEPARATORS = {
    "present": "End of text (EOS), where the tokenizer has one",
    "eos": "End of text (EOS)",
    "bos": "Beginning of text (BOS)",
    "none": "Nothing",
}
CHATS = {
    "auto": "By the chat template, where there is one",
    "template": "By the chat template",
    "transcript": "As the plain text of the dataset",
}
ROLES = {"all": "Every token", "assistant": "What the assistant says", "user": "What the user says"}
JUNK = {name: strength.label for name, strength in STRENGTHS.items()}
CHOICES: dict[str, dict[str, str]] = {
    "layout": LAYOUTS,
    "bos": BOS,
    "separator": SEPARATORS,
    "chat": CHATS,
    "train_on": ROLES,
    "junk": JUNK,
}


@dataclass(frozen=True)
class TokenConfig:
    context_length: int
    seed: int = 0
    held_out: float = 0.1  # share of the documents
    layout: str = "packed"
    # Padded: tokens that a window repeats of the one before it. None: what is longer than a row is cut off.
    stride: int | None = None
    bos: str = "present"  # for encoders: what stands around a row, CLS and SEP
    separator: str = "present"  # packed: between documents
    chat: str = "auto"  # conversations
    train_on: str = "all"  # the tokens of other roles are there and never counted
    junk: str = "off"

    def __post_init__(self) -> None:
        """Raises Unusable."""
        if self.context_length < 2:
            raise Unusable("A context has at least 2 tokens.", field="context_length")
        if not 0 <= self.held_out < 1:
            raise Unusable("The held-out share is from 0 to below 1.", "0.1 is usual.", "held_out")
        if not 0 <= self.seed < 2**63:
            raise Unusable("The seed is a whole number from 0.", field="seed")
        for field, known in CHOICES.items():
            if (said := getattr(self, field)) not in known:
                raise Unusable(f"{said!r} is no {field.replace('_', ' ')}.", f"Choose {', '.join(known)}.", field)
        if self.stride is not None:
            self.check_stride(self.stride)
        if self.train_on != "all" and self.chat == "transcript":
            raise Unusable("A plain transcript does not tell who says what.", "Use the chat template.", "train_on")

    def check_stride(self, stride: int) -> None:
        if self.layout != "padded":
            raise Unusable("Windows overlap in the padded layout alone.", "Leave it empty.", "stride")
        if not 0 <= stride <= self.context_length // 2:
            half = self.context_length // 2
            raise Unusable(f"An overlap of {stride} tokens is outside 0 to {half}.", "Half a row at most.", "stride")

    @property
    def masks(self) -> bool:
        """May tokens other than special ones stay uncounted?"""
        return self.layout == "padded" or self.train_on != "all"
