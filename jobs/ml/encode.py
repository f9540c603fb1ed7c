"""Pieces of text as the words that rows are made of (see rows.py)."""

from typing import Any

import numpy as np

from jobs.ml.chat import Span
from jobs.ml.errors import Unusable
from jobs.ml.pieces import Piece
from jobs.ml.rows import MASKED

PLAIN = {"add_special_tokens": False, "padding": False, "truncation": False, "verbose": False}


def encode(tokenizer: Any, batch: list[Piece]) -> list[np.ndarray]:
    """uint32 [tokens] of each piece. A fast tokenizer reads them all at once, in threads of its own.

    Raises Unusable where a role is wanted of a tokenizer that does not say where in the text its tokens are.
    """
    texts = [piece.text for piece in batch]
    spans = [piece.counted() for piece in batch]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        if any(span is not None for span in spans):
            raise Unusable("This tokenizer does not tell where its tokens are.", "Train on every token.", "train_on")
        ids = tokenizer(texts, return_attention_mask=False, **PLAIN)["input_ids"]
        return [np.asarray(row, dtype=np.uint32) for row in ids]
    backend.no_truncation()
    backend.no_padding()
    if all(span is None for span in spans):
        return [np.asarray(e.ids, dtype=np.uint32) for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
    found = backend.encode_batch(texts, add_special_tokens=False)
    return [masked(e.ids, e.offsets, span) for e, span in zip(found, spans, strict=True)]


def masked(ids: list[int], offsets: list[tuple[int, int]], spans: list[Span] | None) -> np.ndarray:
    """A token counts where its first character lies in one of the spans."""
    words = np.asarray(ids, dtype=np.uint32)
    if spans is None:
        return words
    places = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 0]
    ends = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
    within = np.searchsorted(ends[:, 0], places, "right") > np.searchsorted(ends[:, 1], places, "right")
    return np.where(within, words, words | MASKED)
