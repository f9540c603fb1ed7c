"""Numbers about documents, exact and in memory that does not grow with their lengths."""

from array import array
from collections import Counter
from hashlib import blake2b
from typing import Any

import numpy as np

from jobs.ml.conversations import Document, text_of
from jobs.ml.text_files import LONGEST

MOST_COMPARED = 20_000_000  # documents looked at for duplicates: eight bytes each


class DocumentStatistics:
    def __init__(self) -> None:
        self.documents = self.characters = self.bytes = 0
        self.by_length = np.zeros(LONGEST + 1, np.int64)  # documents of each length in characters
        self.digests = array("Q")
        self.roles: Counter[str] = Counter()  # messages of conversations

    def add(self, document: Document, text: str = "") -> None:
        """text: of the document, where it is known already."""
        text = text or text_of(document)
        data = text.encode()
        if not isinstance(document, str):
            self.roles.update(message["role"] for message in document)
        self.documents += 1
        self.characters += len(text)
        self.bytes += len(data)
        self.by_length[len(text)] += 1
        if len(self.digests) < MOST_COMPARED:
            self.digests.append(int.from_bytes(blake2b(data, digest_size=8).digest(), "big"))

    def would_exceed(self, text: str, max_documents: int | None, max_bytes: int | None) -> bool:
        """With a document of this text too. Bytes are those of the text in UTF-8."""
        if max_documents is not None and self.documents >= max_documents:
            return True
        return max_bytes is not None and self.bytes + len(text.encode()) > max_bytes

    def summary(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "characters": self.characters,
            "bytes": self.bytes,
            "mean_characters": self.characters / self.documents if self.documents else None,
            "median_characters": self.length_at(0.5),
            "p95_characters": self.length_at(0.95),
            "longest_characters": self.length_at(1.0),
            **self.duplicates(),
            **({"messages": dict(sorted(self.roles.items()))} if self.roles else {}),
            "documents_by_characters": self.histogram(),
        }

    def length_at(self, share: float) -> int | None:
        """The length that at least this share of the documents do not exceed (nearest rank)."""
        if not self.documents:
            return None
        rank = max(1, int(np.ceil(share * self.documents)))
        return int(np.searchsorted(np.cumsum(self.by_length), rank))

    def duplicates(self) -> dict[str, int]:
        """Documents whose text came before, by 64-bit digests; over how many, where not over all."""
        distinct = len(np.unique(np.frombuffer(self.digests, np.uint64))) if self.digests else 0
        found = {"duplicates": len(self.digests) - distinct}
        return found if len(self.digests) == self.documents else {**found, "duplicates_among_first": len(self.digests)}

    def histogram(self) -> dict[str, int]:
        """Documents by length in characters, in ranges that double: {"64–127": 12, …}."""
        edges = [2**power for power in range(LONGEST.bit_length())] + [LONGEST + 1]
        counts = {
            f"{low}–{high - 1}" if high - 1 > low else f"{low}": int(self.by_length[low:high].sum())
            for low, high in zip(edges, edges[1:], strict=False)
        }
        return {label: count for label, count in counts.items() if count}
