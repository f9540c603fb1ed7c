"""What a file is by its first bytes, compared with what its name says."""

from io import BytesIO
from pathlib import Path

from jobs.ml.errors import Unusable
from jobs.ml.source_files import is_read
from jobs.ml.text_files import FORMATS, HEAD, MAGIC, PACKINGS, encoding_of

BINARY = {  # ending → how such a file may begin
    ".gz": (b"\x1f\x8b",),
    ".bz2": (b"BZh",),
    ".xz": (b"\xfd7zXZ",),
    ".zst": (b"\x28\xb5\x2f\xfd",),
    ".zip": (b"PK\x03\x04", b"PK\x05\x06"),
    ".tgz": (b"\x1f\x8b",),
    ".tar": (),  # see begins_as
    ".parquet": (b"PAR1",),
    ".arrow": (b"ARROW1", b"\xff\xff\xff\xff"),
    ".feather": (b"ARROW1", b"FEA1"),
}


ENDINGS = (*FORMATS, *PACKINGS, ".zip", ".tar", ".tgz")  # of files that can be read


def check_beginning(head: bytes, name: str) -> None:
    """Raises Unusable where the first bytes are not those of what the name says, or the name says nothing."""
    ending = Path(name).suffix.lower()
    if not is_read(Path(name)):
        encoding_of(head[:HEAD], name)  # which may know what it is
        raise Unusable(f"{name} could be anything.", f"Its name may end in {', '.join(ENDINGS)}.")
    if ending not in BINARY:
        encoding_of(head[:HEAD], name)
    elif not begins_as(head, ending):
        what = next((what for magic, what in MAGIC.items() if head.startswith(magic)), f"not what {ending} files are")
        raise Unusable(f"{name} is {what}.", "Give it the ending of what it is, or make it again.")
    elif ending in PACKINGS:
        check_packed(head, name)


def begins_as(head: bytes, ending: str) -> bool:
    return head[257:262] == b"ustar" if ending == ".tar" else head.startswith(BINARY[ending])


def check_packed(head: bytes, name: str) -> None:
    """What is inside, as far as it can be unpacked from the first bytes alone."""
    try:
        with PACKINGS[Path(name).suffix.lower()](BytesIO(head)) as unpacked:
            inside = unpacked.read(min(HEAD, len(head)))
    except Exception:  # cut off too early to tell, or damaged: the job that reads it all says which
        return
    inner = Path(name).stem
    if Path(inner).suffix.lower() not in BINARY:
        encoding_of(inside, inner)
