"""What a file that is not UTF-8 may be in: how each encoding would read it, for a person to choose. No guess is made:
western and Polish files, say, decode in each other's encodings without a fault, to other letters."""

from collections.abc import Iterator

from jobs.ml.text_files import LONGEST_LINE, UNREADABLE_MARK, OpenFile, SourceFile

CANDIDATES = ("windows-1252", "windows-1250", "windows-1251", "gb18030", "shift_jis", "euc_kr", "big5")
AROUND = 16  # characters before and after the first one that differs


def first_unreadable(file: SourceFile) -> tuple[int, bytes]:
    """Number and bytes of the first line that is not UTF-8; 0 where there is none, or a mark says another encoding."""
    for number, (line, same) in enumerate(zip(lines(file, "utf-8"), lines(file, "latin-1"), strict=False), 1):
        if UNREADABLE_MARK in line:
            try:
                return number, same.encode("latin-1")
            except UnicodeEncodeError:  # a mark at its beginning overrules both
                break
    return 0, b""


def lines(file: SourceFile, encoding: str) -> Iterator[str]:
    with OpenFile(file, "\n", encoding) as opened:
        while line := opened.text.readline(LONGEST_LINE):
            yield line


def readings(line: bytes) -> dict[str, str]:
    """Encoding → what it makes of the place where the line is not UTF-8; of those that read the whole line."""
    at = first_fault(line)
    found: dict[str, str] = {}
    for encoding in CANDIDATES:
        try:
            before, text = line[:at].decode(encoding), line.decode(encoding).rstrip("\r\n")
        except UnicodeDecodeError:
            continue
        shown = text[max(0, len(before) - AROUND) : len(before) + AROUND]
        if shown.replace("\t", " ").isprintable() and shown not in found.values():
            found[encoding] = shown
    return found


def first_fault(line: bytes) -> int:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return 0
