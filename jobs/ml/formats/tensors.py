"""Weights of strangers: nothing is read before its header is what the configuration says, nothing is kept that is not
a finite number, and no file is opened in a way that could run code.
"""

import math
import pickle
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.formats.facts import AGAIN
from jobs.ml.formats.headers import FLOATS, Headers, npz_headers, safetensors_headers
from jobs.ml.text_files import reading

Shapes = Mapping[str, tuple[int, ...]]
SLACK = 2**20  # bytes of a file of torch beside its numbers
CONVERT = "Convert it where you trust it: safetensors.torch.save_file(torch.load(path), path)."


def check(found: Headers, wanted: Shapes, name: str, spare: Collection[str] = ()) -> None:
    """spare: what may be there beside. Raises Unusable."""
    missing, more = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted) - set(spare))
    if missing or more:
        wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(more)[:200]} beside"] * bool(more)
        raise Unusable(f"{name} {' and '.join(wrong)}: it is not the kind of SAE that its configuration says.", AGAIN)
    for key, shape in wanted.items():
        if found[key].shape != shape:
            said = f"{key} has the shape {list(found[key].shape)}, but the configuration says {list(shape)}"
            raise Unusable(f"{name}: {said}.", AGAIN)
        if found[key].dtype not in FLOATS:
            raise Unusable(f"{name}: {key} holds {found[key].dtype}, not floating-point numbers.", AGAIN)


def finite(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """As float32. Raises Unusable."""
    for key, tensor in tensors.items():
        tensors[key] = tensor.to(torch.float32).contiguous()
        if wrong := tensors[key].numel() - int(torch.isfinite(tensors[key]).sum()):
            raise Unusable(f"{name}: {key} has {wrong:,} values that are not finite numbers.", AGAIN)
    return tensors


def read_safetensors(
    path: Path, wanted: Shapes, spare: Collection[str] = (), ignored: Collection[str] = ()
) -> dict[str, Tensor]:
    """The wanted ones and those of `spare` that are there, as float32. ignored: what may be there, and may hold
    anything. Raises CorruptData, Unusable."""
    check(safetensors_headers(path), wanted, path.name, (*spare, *ignored))
    try:
        found = load_file(path)
        taken = {name: found[name] for name in found if name not in ignored or name in wanted}
        return finite(taken, path.name)
    except SafetensorError as error:
        raise CorruptData(f"{path.name} cannot be read: {error}.", AGAIN) from error


def read_npz(path: Path, wanted: Shapes) -> dict[str, Tensor]:
    check(npz_headers(path), wanted, path.name)
    with reading(path.name):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in wanted}
        except ValueError as error:
            raise CorruptData(f"{path.name} cannot be read: {error!s:.150}.", AGAIN) from error
    return finite(found, path.name)


def read_torch(path: Path, wanted: Shapes, spare: Collection[str] = ()) -> dict[str, Tensor]:
    """A state_dict of torch, by weights_only alone. Raises CorruptData, Unusable."""
    check_archive(path, wanted)
    try:
        with reading(path.name):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        said = f"{path.name} holds more than weights, which could run code when opened"
        raise Unusable(f"{said}; it was not opened.", CONVERT) from error
    except (CorruptData, OSError, MemoryError):  # said already, or no fault of the file
        raise
    except Exception as error:  # torch says RuntimeError, KeyError … of a file that is damaged
        raise CorruptData(f"{path.name} cannot be read: {error!s:.150}.", AGAIN) from error
    named = isinstance(found, dict) and all(isinstance(name, str) for name in found)
    if not named or not all(isinstance(value, Tensor) for value in found.values()):
        said = "a checkpoint of a trainer" if isinstance(found, dict) else "something else"
        raise Unusable(f"{path.name} holds {said}, not the weights of a dictionary.", "Give the final ae.pt.")
    for key, tensor in found.items():
        odd = tensor.is_nested or tensor.is_quantized or tensor.is_meta  # what its file does not hold as it is
        if tensor.layout != torch.strided or odd:
            raise Unusable(f"{path.name}: {key} is no dense tensor.", AGAIN)
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise Unusable(f"{path.name} lacks {', '.join(missing)}: it is not what its configuration says.", AGAIN)
    for key, shape in wanted.items():
        if tuple(found[key].shape) != shape or not found[key].is_floating_point():
            has = f"{key} has the shape {list(found[key].shape)} of {found[key].dtype}"
            raise Unusable(f"{path.name}: {has}, but the configuration says {list(shape)}.", AGAIN)
    if more := sorted(set(found) - set(wanted) - set(spare)):
        raise Unusable(f"{path.name} has {', '.join(more)[:200]} beside: it is not what its configuration says.", AGAIN)
    return finite(found, path.name)


def check_archive(path: Path, wanted: Shapes) -> None:
    """What torch writes is a zip archive that is not packed: no more in it than there should be numbers."""
    most = 8 * sum(math.prod(shape) for shape in wanted.values()) + SLACK
    with reading(path.name):
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except zipfile.BadZipFile as error:
            said = f"{path.name} is no file of torch since 1.6, or a bare pickle; it was not opened."
            raise Unusable(said, CONVERT) from error
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise Unusable(f"{path.name} is packed, which torch never does; it was not opened.", AGAIN)
    if (whole := sum(info.file_size for info in infos)) > most:
        raise Unusable(f"{path.name} holds {whole:,} bytes; the SAE of its configuration has {most:,} at most.", AGAIN)
