"""What tests do with files, whatever they hold."""

from pathlib import Path


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    """By name: of all files in it, or of those that match."""
    return {path.name: path.read_bytes() for pattern in patterns or ("*",) for path in sorted(folder.glob(pattern))}


def flip(path: Path, place: int = -1) -> None:
    """The same length, another content."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
