"""Which special tokens a model expects around a sequence and between documents."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Framing:
    """A sequence is before + content + after; documents are separated by `between`."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    between: tuple[int, ...]
    special: frozenset[int]  # every id to be masked, wherever it stands
    vocab_size: int

    @property
    def overhead(self) -> int:
        return len(self.before) + len(self.after)

    def mask_table(self) -> np.ndarray:
        """bool [vocab_size]: is this id special?"""
        table = np.zeros(self.vocab_size, dtype=bool)
        table[list(self.special)] = True
        return table


def framing(tokenizer: Any, add_bos: bool = True) -> Framing:
    """Decoders: BOS first, EOS between documents. Encoders: [CLS] ... [SEP], and [SEP] between documents.

    Each is left out where the tokenizer has no such token.
    """
    bos, eos, cls, sep = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "cls", "sep"))
    encoder = cls is not None and sep is not None and bos in (None, cls)  # RoBERTa calls its CLS a BOS as well
    first, last, between = (cls, sep, sep) if encoder else (bos, None, eos)
    special = special_ids(tokenizer)
    return Framing(
        before=one(first) if add_bos else (),
        after=one(last) if add_bos else (),
        between=one(between),
        special=special,
        vocab_size=1 + max([len(tokenizer) - 1, *tokenizer.get_vocab().values(), *special]),
    )


def one(token: int | None) -> tuple[int, ...]:
    return () if token is None else (token,)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Every id the tokenizer calls special but an unknown-token of its own: unknown words are content."""
    named: set[int | None] = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    roles: set[int | None] = {
        getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "cls", "sep", "pad", "mask")
    }
    return frozenset(index for index in (named - {tokenizer.unk_token_id}) | roles if index is not None)
