"""What each token id looks like to a reader."""

import json
import re
from typing import Any

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how SentencePiece spells a byte it has no piece for


def vocabulary(tokenizer: Any, size: int | None = None) -> list[str]:
    r"""The readable piece of every id, `size` of them (ids without a token, as in a padded vocabulary, are
    "").

    Byte-level pieces are decoded, bytes that are no whole UTF-8 character show as \xNN; special and added
    tokens, and WordPiece's ## continuations, stay as they are.
    """
    pieces: dict[str, int] = tokenizer.get_vocab()
    added = set(tokenizer.get_added_vocab())
    readable = reader(tokenizer)
    words = [""] * max(size or 0, max(pieces.values(), default=-1) + 1)
    for piece, index in pieces.items():
        words[index] = piece if piece in added else readable(piece)
    return words


def reader(tokenizer: Any) -> Any:
    decoders = decoder_types(tokenizer)
    if "ByteLevel" in decoders:
        return read_byte_level
    if decoders & {"Metaspace", "ByteFallback"}:
        return read_sentencepiece
    return str


def decoder_types(tokenizer: Any) -> set[str]:
    """The steps of a fast tokenizer's decoder, such as {"ByteLevel"}."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {step["type"] for step in state.get("decoders", [state])}


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level BPE (Radford et al. 2019)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTES = byte_alphabet()


def read_byte_level(piece: str) -> str:
    if all(character in BYTES for character in piece):
        return bytes(BYTES[character] for character in piece).decode("utf-8", errors="backslashreplace")
    return piece


def read_sentencepiece(piece: str) -> str:
    if byte := BYTE_TOKEN.fullmatch(piece):
        return bytes.fromhex(byte[1]).decode("utf-8", errors="backslashreplace")
    return piece.replace("▁", " ")
