"""Texts that came before, told in memory that is a few bytes for each."""

import unicodedata
from array import array
from hashlib import blake2b

SLOTS = 2**12  # to begin with


def normalised(text: str) -> str:
    """The same for texts that differ in white space or in how their characters are composed."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class Digests:
    """64-bit digests of texts in an open table: 12 to 24 bytes a text.

    Among 20 million texts the odds that any is taken for another by chance are 1 in 90,000.
    """

    def __init__(self) -> None:
        self.slots = array("Q", bytes(8 * SLOTS))
        self.held = 0

    def add(self, text: str) -> bool:
        """Whether it is new."""
        digest = blake2b(normalised(text).encode(), digest_size=8).digest()
        return self.insert(int.from_bytes(digest, "big") or 1)  # 0 marks an empty slot

    def insert(self, digest: int) -> bool:
        slots, last = self.slots, len(self.slots) - 1
        place = digest & last
        while there := slots[place]:
            if there == digest:
                return False
            place = (place + 1) & last
        slots[place] = digest
        self.held += 1
        if 3 * self.held > 2 * len(slots):
            self.grow()
        return True

    def grow(self) -> None:
        before, self.slots, self.held = self.slots, array("Q", bytes(16 * len(self.slots))), 0
        for digest in before:
            if digest:
                self.insert(digest)
