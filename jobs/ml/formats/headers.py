"""Shapes and types of the tensors in a file, from its table of contents alone, and whether that can be true of the
file. Needs numpy only.
"""

import json
import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.formats.facts import AGAIN
from jobs.ml.text_files import reading

MOST_HEADER = 2**23  # bytes; of an SAE it has some hundreds
MOST_TENSORS = 1000
UNFOLDED, MOST_RATIO = 2**22, 50  # bytes from which a packed array is doubted, and the ratio that is
ITEM = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = ("F64", "F32", "F16", "BF16")
NPY = {np.dtype("<f8"): "F64", np.dtype("<f4"): "F32", np.dtype("<f2"): "F16"}


@dataclass(frozen=True)
class Header:
    dtype: str  # one of ITEM
    shape: tuple[int, ...]


Headers = dict[str, Header]


def safetensors_headers(path: Path) -> Headers:
    """Raises CorruptData where the header and the file do not agree."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MOST_HEADER, size - 8):
            said = f"says that its header has {length:,} bytes, of {size:,} in all"
            raise CorruptData(f"{path.name} {said}: it is no safetensors file, or was cut off.", AGAIN)
        text = file.read(length)
    try:
        table = json.loads(text)
        entries = {name: entry for name, entry in table.items() if name != "__metadata__"}
        found = {name: safetensors_header(entry) for name, entry in entries.items()}
        ends = [int(end) for entry in entries.values() for end in entry["data_offsets"][1:]]
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise CorruptData(f"{path.name} has a header that cannot be read: {error!r:.100}.", AGAIN) from error
    if len(found) > MOST_TENSORS or max(ends, default=0) != size - 8 - length:
        raise CorruptData(f"{path.name} does not hold the bytes that its header says: it was cut off.", AGAIN)
    return found


def safetensors_header(entry: dict[str, Any]) -> Header:
    """Raises ValueError, KeyError, TypeError."""
    dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
    begin, end = entry["data_offsets"]
    if dtype not in ITEM or any(n < 0 for n in shape) or end - begin != math.prod(shape) * ITEM[dtype]:
        raise ValueError(f"a tensor {dtype} {list(shape)} in {end - begin} bytes")
    return Header(dtype, shape)


def npz_headers(path: Path) -> Headers:
    """Of the arrays of numbers; pickled objects, strange names and what unfolds are refused. Raises CorruptData,
    Unusable."""
    found: Headers = {}
    try:
        with reading(path.name), zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            if len(infos) > MOST_TENSORS or len({info.filename for info in infos}) < len(infos):
                raise CorruptData(
                    f"{path.name} names {len(infos):,} arrays, some of them twice or far too many.", AGAIN
                )
            for info in infos:
                name = info.filename.removesuffix(".npy")
                if name == info.filename or not name.replace("_", "").isalnum():
                    raise Unusable(f"{path.name} holds {info.filename[:100]!r}, which is no array of an SAE.", AGAIN)
                if info.file_size > UNFOLDED and info.file_size > MOST_RATIO * info.compress_size:
                    said = f"{path.name}: {name} unfolds from {info.compress_size:,} to {info.file_size:,} bytes"
                    raise Unusable(f"{said}, which weights never do.", AGAIN)
                with archive.open(info) as file:
                    found[name] = npy_header(file, info.file_size, f"{name} in {path.name}")
    except RuntimeError as error:  # a password is wanted
        raise Unusable(f"{path.name} cannot be read: {error}.", AGAIN) from error
    return found


def npy_header(file: IO[bytes], size: int, name: str) -> Header:
    """`size`: what the archive says it unpacks to."""
    try:
        major, _ = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(file)  # bounded: 10,000 bytes at most
    except OSError:  # may be no fault of the file
        raise
    except Exception as error:  # numpy parses it as Python, which has many words for what it is not
        raise CorruptData(f"{name} has a header that cannot be read: {error!s:.100}.", AGAIN) from error
    if dtype.hasobject:
        hint = "Save it again as numbers: numpy.savez(path, w_enc=…)."
        raise Unusable(f"{name} is a pickled object, which can run code when opened.", hint)
    known = NPY.get(dtype)
    if known is None:
        raise Unusable(f"{name} holds {dtype}, not floating-point numbers.", "Save it again as float32.")
    if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > size:
        raise CorruptData(f"{name} should hold {shape} numbers, but has {size:,} bytes.", AGAIN)
    return Header(known, shape)
