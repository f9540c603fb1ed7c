"""The formats in which SAEs come and go. A new one is a file in this folder and a line in the table.

The table needs no torch: forms and pages read it too. Every module has
  facts(folder, place)   what the files say, `place` being where they come from: some names tell what no file says
  weights(folder, facts) the tensors of `facts.shapes`, in our orientation: W_enc [M, D]
  write(sae, folder, …)  where the table says which architectures it can hold
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jobs.ml.errors import Unusable
from jobs.ml.formats.facts import Facts

if TYPE_CHECKING:
    from jobs.ml.sae import Sae


@dataclass(frozen=True)
class Format:
    label: str
    module: str  # in this folder
    files: tuple[tuple[str, ...], ...]  # one of these sets makes a folder known
    peer: str = ""  # the package that certifies it, as pip knows it
    writes: tuple[str, ...] = ()  # architectures of ours that it can hold


ALL = ("topk", "abstopk", "jumprelu", "standard", "gated")
FORMATS: Mapping[str, Format] = {
    "saelens": Format("SAELens", "saelens", (("cfg.json", "sae_weights.safetensors"),), "sae-lens", ALL),
    "sparsify": Format("sparsify", "sparsify", (("cfg.json", "sae.safetensors"),), "eai-sparsify", ("topk",)),
    "dictionary_learning": Format(
        "dictionary_learning", "dictionary_learning", (("config.json", "ae.pt"),), "dictionary-learning",
        ("topk", "jumprelu", "standard", "gated"),
    ),
    "gemma_scope": Format(
        "Gemma Scope", "gemma_scope", (("params.npz",), ("config.json", "params.safetensors")), "sae-lens",
        ("jumprelu", "standard"),
    ),
    "llama_scope": Format(
        "Llama Scope", "llama_scope", (("hyperparams.json", "checkpoints/final.safetensors"),), "sae-lens",
        ("jumprelu", "standard"),
    ),
    "llamascopium": Format("Llamascopium", "llamascopium", (("config.json", "sae_weights.safetensors"),), "sae-lens"),
}  # fmt: skip
NAMES = sorted({name for format in FORMATS.values() for names in format.files for name in names})
NEURONPEDIA = "neuronpedia"  # what a scan found, not the SAE itself: see jobs.ml.neuronpedia
WRITTEN: Mapping[str, str] = {
    **{name: format.label for name, format in FORMATS.items() if format.writes},
    NEURONPEDIA: "Neuronpedia (SAEDashboard)",
}
LABELS = [format.label for format in FORMATS.values()]
UNSAFE = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib")
KNOWN = "; ".join(f"{format.label}: {' and '.join(format.files[0])}" for format in FORMATS.values())


def module_of(name: str) -> ModuleType:
    return import_module(f"{__name__}.{FORMATS[name].module}")


def format_of(folder: Path) -> str:
    """By the names of the files, "" where they are of no known format. Links are not followed."""
    whole = (name for name, format in FORMATS.items() for names in format.files if all_there(folder, names))
    return next(whole, "")


def all_there(folder: Path, names: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() and not (folder / name).is_symlink() for name in names)


def belongs(name: str, folder: str) -> bool:
    """May the file of this path be part of the SAE in the folder ("" is the top)?"""
    return name in {f"{folder}/{known}".lstrip("/") for known in NAMES}


def among(names: Iterable[str]) -> set[str]:
    """The folders ("" is the top) that hold an SAE of a known format, of the files with these paths."""
    there = {"/" + name.strip("/") for name in names}
    found = set()
    for files in (files for format in FORMATS.values() for files in format.files):
        above = {path.removesuffix(f"/{files[0]}") for path in there if path.endswith(f"/{files[0]}")}
        found |= {folder.strip("/") for folder in above if all(f"{folder}/{file}" in there for file in files)}
    return found


def choose(names: Collection[str], path: str = "") -> str:
    """The folder of the one SAE among the files, at the path or below it. Raises Unusable: there is none, or
    several."""
    path = path.strip("/")
    below = [name for name in names if not path or name == path or name.startswith(f"{path}/")]
    if path and not below:
        folders = sorted({name.rpartition("/")[0] for name in names})
        near = ", ".join(get_close_matches(path, folders, 3, 0.4) or folders[:3])
        raise Unusable(f"There is no folder {path}.", f"There are {near}." if near else "Leave it empty.", "path")
    found = among(below)
    if path in found:
        return path
    if len(found) == 1:
        return found.pop()
    if found:
        some = ", ".join(sorted(found)[:5]) + (f" and {len(found) - 5:,} more" if len(found) > 5 else "")
        raise Unusable(f"There are {len(found):,} SAEs here: {some}.", "Give the folder of one of them.", "path")
    if pickles := sorted(name for name in below if name.endswith(UNSAFE)):
        said = f"only {', '.join(pickles[:3])}, which can run code when opened"
        raise Unusable(f"No known SAE is here, {said}.", f"Known are {KNOWN}.")
    there = ", ".join(sorted(below)[:5]) or "no file"
    raise Unusable(f"No known SAE is here; there is {there}.", f"Known are {KNOWN}.")


def find(folder: Path, path: str = "") -> Path:
    """The folder of the one SAE at the path in the folder, or below it. Raises Unusable."""
    if not folder.is_dir():
        raise Unusable(f"There is no folder {folder}.", "Give the folder that holds the SAE's files.")
    files = (file for file in folder.rglob("*") if not file.is_symlink() and file.is_file())
    return folder / choose([file.relative_to(folder).as_posix() for file in files], path)


def recognise(folder: Path | str, place: str = "") -> Facts:
    """What is in the folder, without reading its weights. place: where it comes from, as a path or hub id and path.
    Raises CorruptData, Unusable."""
    folder = Path(folder)
    name = format_of(folder)
    if not name:
        find(folder)  # which says what is there
        raise Unusable(f"The SAE in {folder} lies in a folder within.", "Give that folder.")
    facts: Facts = module_of(name).facts(folder, place or str(folder))
    return facts.check()


def read(folder: Path | str, place: str = "") -> "tuple[Sae, Facts]":
    """The SAE, folded as ours are, and what its files say. Raises CorruptData, Unusable."""
    from jobs.ml.formats.assemble import assemble

    facts = recognise(folder, place)
    return assemble(facts, module_of(facts.format).weights(Path(folder), facts))


def refusal(name: str, architecture: str, *, transcodes: bool = False, d_in: int = 0, d_out: int = 0) -> str:
    """Why an SAE cannot be written in this format, "" where it can."""
    format = FORMATS[name]
    if not format.writes:
        return f"{format.label} files are read here, not written."
    if architecture not in format.writes:
        return f"{format.label} has no {architecture}."
    refused: str = getattr(module_of(name), "refusal", lambda **_: "")(
        architecture=architecture, transcodes=transcodes, d_in=d_in, d_out=d_out or d_in
    )
    return refused


def write(sae: "Sae", folder: Path | str, name: str, *, reads: Any, writes: Any = (), **metadata: Any) -> None:
    """Replaces the folder as a whole. Raises Unusable, ValueError."""
    why = refusal(name, sae.architecture, transcodes=bool(writes), d_in=sae.d_in, d_out=sae.d_out)
    if why:
        raise Unusable(why, "Choose another format.", "format")
    module_of(name).write(sae, Path(folder), tuple(reads), tuple(writes), metadata)
