"""What a tokenization counts while it reads: exact, in memory that does not grow, and resumable."""

from typing import Any

import numpy as np

from jobs.ml.pieces import Piece
from jobs.ml.rows import MASKED

TOP = 20
BINS = 32  # documents by tokens, in ranges that double: 1, 2–3, 4–7, …


class TokenStatistics:
    """`state` is plain JSON, `by_id` an array; both together are all there is."""

    def __init__(self, vocab_size: int) -> None:
        self.by_id = np.zeros(vocab_size, dtype=np.int64)  # occurrences in the documents
        self.state: dict[str, Any] = {
            "documents": 0,
            "document_tokens": 0,  # of the document that has been begun
            "empty_documents": 0,
            "tokens": 0,
            "characters": 0,
            "dropped_documents": {},  # by reason
            "removed_characters": {},  # by rule of the junk filter, those of dropped documents included
            "changed_documents": {},
            "lengths": [0] * BINS,
        }

    def count(self, encoded: list[np.ndarray]) -> None:
        if encoded:
            ids = np.concatenate(encoded) & ~MASKED
            self.by_id += np.bincount(ids, minlength=len(self.by_id))

    def add(self, piece: Piece, tokens: int) -> bool:
        """Whether the document, so far, has no token."""
        state = self.state
        state["tokens"] += tokens
        state["document_tokens"] += tokens
        state["characters"] += len(piece.text)
        empty = not state["document_tokens"]
        if piece.last:
            self.finish_document(piece, state["document_tokens"])
            state["document_tokens"] = 0
        return empty

    def finish_document(self, piece: Piece, tokens: int) -> None:
        state, document = self.state, piece.document
        state["documents"] += 1
        if document.dropped:
            raise_by(state["dropped_documents"], document.dropped, 1)
        elif not tokens:
            state["empty_documents"] += 1
        for rule, characters in document.removed.items():
            raise_by(state["removed_characters"], rule, characters)
            raise_by(state["changed_documents"], rule, 1)
        if tokens:
            state["lengths"][min(BINS, tokens.bit_length()) - 1] += 1

    def summary(self) -> dict[str, Any]:
        state = self.state
        dropped = sum(state["dropped_documents"].values())
        filled = state["documents"] - state["empty_documents"] - dropped
        top = np.argsort(-self.by_id, kind="stable")[:TOP]
        return {
            "documents": state["documents"],
            "empty_documents": state["empty_documents"],
            "document_tokens": state["tokens"],
            "mean_tokens_per_document": state["tokens"] / filled if filled else 0.0,
            "characters": state["characters"],
            "characters_per_token": state["characters"] / state["tokens"] if state["tokens"] else None,
            "vocabulary": len(self.by_id),
            "vocabulary_used": int((self.by_id > 0).sum()),
            "most_frequent": [[int(token), int(self.by_id[token])] for token in top if self.by_id[token]],
            "documents_by_tokens": trimmed(state["lengths"]),
            "dropped_documents": state["dropped_documents"],
            "removed_characters": state["removed_characters"],
            "changed_documents": state["changed_documents"],
        }


def raise_by(counts: dict[str, int], name: str, n: int) -> None:
    counts[name] = counts.get(name, 0) + n


def trimmed(counts: list[int]) -> list[int]:
    """Number n counts documents of 2**n to 2**(n+1) - 1 tokens; without the empty ranges at the end."""
    return counts[: max((n for n, count in enumerate(counts, 1) if count), default=0)]
