"""Which special tokens a model expects around a row and between documents."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jobs.ml.errors import Unusable

ROLES = ("bos", "eos", "cls", "sep", "pad", "mask")


@dataclass(frozen=True)
class Framing:
    """A row is before + content + after, then padding; packed documents are separated by `between`."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    between: tuple[int, ...]
    special: frozenset[int]  # every id to be masked, wherever it stands
    vocab_size: int
    padding: int = 0  # any id would do: a mask says what is padding

    @property
    def overhead(self) -> int:
        return len(self.before) + len(self.after)

    def told(self) -> dict[str, Any]:
        """What tells documents apart afterwards."""
        return {"before": len(self.before), "after": len(self.after), "between": list(self.between)}

    def mask_table(self) -> np.ndarray:
        """bool [vocab_size]: is this id special?"""
        table = np.zeros(self.vocab_size, dtype=bool)
        table[list(self.special)] = True
        return table


def framing(tokenizer: Any, bos: str = "present", separator: str = "present") -> Framing:
    """Decoders: BOS first, EOS between documents. Encoders: [CLS] ... [SEP], and [SEP] between documents.

    bos and separator as in TokenConfig; "present" leaves out what the tokenizer does not have.
    Raises Unusable where the tokenizer lacks what was asked for.
    """
    ids = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    cls, sep = ids["cls"], ids["sep"]
    encoder = cls is not None and sep is not None and ids["bos"] in (None, cls)  # RoBERTa calls its CLS a BOS as well
    first, last, end = (cls, sep, sep) if encoder else (ids["bos"], None, ids["eos"])
    before, after = around(tokenizer, one(first), one(last), bos)
    special = special_ids(tokenizer)
    return Framing(
        before=before,
        after=after,
        between=between(separator, one(first), one(end)),
        special=special,
        vocab_size=1 + max([len(tokenizer) - 1, *tokenizer.get_vocab().values(), *special]),
        padding=[*one(ids["pad"]), *one(ids["eos"]), *one(sep), 0][0],
    )


def around(
    tokenizer: Any, first: tuple[int, ...], last: tuple[int, ...], bos: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and after the content of a row."""
    if bos == "never":
        return (), ()
    if bos == "always" and not first:
        raise Unusable(
            "The tokenizer has no token for the beginning of a text (BOS).",
            "Choose “where the tokenizer has one” or “never” for the beginning of a row.",
            "bos",
        )
    if bos == "tokenizer":
        own = tokenizer("a")["input_ids"]
        return first if own[:1] == [*first] else (), last if own[-1:] == [*last] else ()
    return first, last


def between(separator: str, first: tuple[int, ...], end: tuple[int, ...]) -> tuple[int, ...]:
    chosen = {"present": end, "eos": end, "bos": first, "none": ()}[separator]
    if separator in ("eos", "bos") and not chosen:
        raise Unusable(
            f"The tokenizer has no token for the {'end' if separator == 'eos' else 'beginning'} of a text "
            f"({separator.upper()}).",
            "Choose another separator, or nothing, between documents.",
            "separator",
        )
    return chosen


def check_vocabulary(tokenizer: Any, frame: Framing, embeddings: int) -> None:
    """Raises Unusable where the tokenizer's words, or what stands around documents, have ids without an embedding.

    Added tokens that no text holds may lie outside (see `check_ids`), and padding too (see `in_range`)."""
    words = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()
    framing_ids = (*frame.before, *frame.after, *frame.between)
    require_embedding(max((*tokenizer.convert_tokens_to_ids(list(words)), *framing_ids), default=0), embeddings)


def check_ids(encoded: Iterable[np.ndarray], embeddings: int) -> None:
    """Raises Unusable for an id without an embedding."""
    require_embedding(max((int(words.max()) for words in encoded if len(words)), default=0), embeddings)


def require_embedding(largest: int, embeddings: int) -> None:
    if largest >= embeddings:
        raise Unusable(
            f"The tokenizer gives ids up to {largest:,}, but the model has embeddings for {embeddings:,} tokens alone.",
            "These two do not belong together: add the model with the tokenizer it was trained with.",
            "language_model",
        )


def in_range(frame: Framing, embeddings: int) -> Framing:
    """With a padding id that the model can look up."""
    return frame if frame.padding < embeddings else replace(frame, padding=0)


def one(token: int | None) -> tuple[int, ...]:
    return () if token is None else (token,)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Every id the tokenizer calls special but an unknown-token of its own: unknown words are content."""
    named: set[int | None] = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    roles: set[int | None] = {getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    return frozenset(index for index in (named - {tokenizer.unk_token_id}) | roles if index is not None)
