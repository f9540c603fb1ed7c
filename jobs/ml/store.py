"""Files that are whole or absent: written under a temporary name, fsynced, renamed. Needs numpy for arrays alone: every
process that has a database imports this."""

import ctypes
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

VERSIONED = ("mistudio", "torch", "transformers", "numpy")
CHUNK = 4 * 2**20  # bytes read at once
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2(2)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends well and vanishes otherwise. Whoever looks
    finds the old one or the new one, also after a kill; but of folders that the file system cannot exchange there is
    none between two renames, and after a kill there until `remove_torn` gives the old one its name back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{path.name}.{uuid.uuid4().hex[:8]}"
    temporary, aside = path.with_name(f"{mark}.tmp"), path.with_name(f"{mark}.old.tmp")
    try:
        yield temporary
        sync(temporary)
        if not path.is_dir():
            temporary.replace(path)
        elif not exchange(temporary, path):  # rename(2) does not replace a folder that has files in it
            path.rename(aside)
            try:
                temporary.rename(path)
            except OSError:
                aside.rename(path)
                raise
            temporary = aside
        flush(path.parent)
    finally:
        remove(temporary)


def exchange(one: Path, other: Path) -> bool:
    """Each gets the other's name, both at once. False where the system or the file system has no such thing."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    failed: int = rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    return not failed


def sync(path: Path) -> None:
    """To the disk: a file, or a folder with all that is in it."""
    if path.is_dir():
        for child in path.iterdir():
            sync(child)
    flush(path)


def flush(path: Path) -> None:
    """To the disk: a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_torn(folder: Path, names: str = "*") -> None:
    """What `replacing` was writing there, under such names, when its process was killed. An old folder that it had put
    aside, and whose name nothing has taken, is what it was again."""
    for aside in folder.glob(f".{names}.old.tmp"):
        path = aside.with_name(aside.name[1:].rsplit(".", 3)[0])
        if not path.exists():
            aside.rename(path)
    for temporary in folder.glob(f".{names}.tmp"):
        remove(temporary)


def write_json(path: Path, value: Any) -> None:
    """Refuses NaN and infinity: no other reader of JSON takes them."""
    text = json.dumps(value, indent=1, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_json_if_there(path: Path) -> Any:
    """Of an object that may not have been written; then it is empty."""
    return read_json(path) if path.is_file() else {}


def write_array(path: Path, array: "np.ndarray") -> None:
    import numpy as np

    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def write_tensors(path: Path, tensors: "Mapping[str, np.ndarray]", metadata: dict[str, str] | None = None) -> None:
    """As safetensors."""
    import numpy as np
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
        save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, temporary, metadata)


def read_tensors(path: Path) -> "dict[str, np.ndarray]":
    from safetensors.numpy import load_file

    return load_file(path)


def read_tensor(path: Path, name: str) -> "np.ndarray":
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return file.get_tensor(name)


def sha256(path: Path, advance: Callable[[int], None] = lambda n: None) -> str:
    """advance(bytes) is told what was read, and may raise to stop."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def fingerprint(value: Any) -> str:
    """The same for equal JSON values: says whether half-finished work belongs to these parameters."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def write_manifest(folder: Path, names: Iterable[str] | Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """`folder`/manifest.json: the fields, the versions that made it, and size and sha256 of the named files
    beside it. A mapping has them already: large files are not read again.
    """
    known = names if isinstance(names, Mapping) else {}
    manifest = {
        **fields,
        "versions": {package: installed(package) for package in VERSIONED},
        "files": {name: known.get(name) or described(folder / name) for name in sorted(names)},
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """None where the work in this folder has not been finished."""
    path = folder / "manifest.json"
    return read_json(path) if path.is_file() else None


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
