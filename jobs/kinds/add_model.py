"""Bring a language model, from the hub or from a folder, into a folder of its own and say what it is."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds.sources import check_source, counter, is_path, keep_to_limit
from jobs.ml import whole
from jobs.ml.errors import Unusable

LABEL = "Add language model"
QUEUE = "cpu"
RESUMABLE = True
HUB = True  # its process gets the token of its owner
STAGES = {"look up": 2.0, "fetch": 80.0, "verify": 17.0, "describe": 1.0}
ON_SUCCESS = "mistudio.ingest.language_model"

CHUNK = 4 * 2**20
ORIGIN = "origin.json"  # what the files belong to, from the first of them on
MADE = {ORIGIN, "manifest.json", whole.MADE, whole.DAMAGED, "calibration.json"}
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Params:
    source: str  # a hub id or an absolute folder
    folder: str
    revision: str = ""
    known: dict[str, str] = field(default_factory=dict)  # commit → name, of this source's models that are here

    def __post_init__(self) -> None:
        check_source(self.source, self.revision, self.folder, "model")


class Origin(Protocol):
    commit: str
    mark: Any  # differs when the files do
    sizes: dict[str, int | None]  # bytes, by file name

    def reuse(self, folder: Path, ctx: Context) -> int: ...

    def bring(self, name: str, folder: Path, advance: Advance) -> None: ...

    def verify(self, path: Path, advance: Advance) -> str: ...


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Started again, it keeps what is whole and goes on with the rest, at the commit it began with."""
    from jobs.ml import disk, language_model, model_config, store
    from jobs.ml.tokenizer import load_tokenizer
    from jobs.ml.vocabulary import vocabulary

    folder = Path(params.folder)
    folder.mkdir(parents=True, exist_ok=True)
    ctx.stage("look up")
    origin = FromFolder(Path(params.source), folder) if is_path(params.source) else FromHub(params, folder, ctx)
    if name := params.known.get(origin.commit):
        said = f"{params.source} is here already as “{name}”, at the commit {origin.commit}."
        raise InvalidInput(said, "Use that one: a precision is chosen for every run.", "source")
    keep_what_belongs(folder, {"params": asdict(params), "commit": origin.commit, "mark": origin.mark})
    reused = origin.reuse(folder, ctx)
    weights = [name for name in origin.sizes if name.endswith(".safetensors")]
    for name in origin.sizes:
        if name not in weights:
            origin.bring(name, folder, lambda n: ctx.check())
    # Before the weights come: a model that is of no use is refused in seconds, not after gigabytes.
    model_config.require_known(model_config.parse((folder / "config.json").read_bytes()))
    architecture = language_model.read_architecture(folder)
    pieces = vocabulary(load_tokenizer(folder), architecture.vocab_size)

    total = sum(origin.sizes[name] or 0 for name in weights)
    disk.require_space(folder, total - weight_bytes(folder), params.source)
    ctx.stage("fetch", total=total or None, unit="bytes")
    advance = counter(ctx)
    for name in weights:
        origin.bring(name, folder, advance)
    files = verify(folder, origin, ctx)

    ctx.stage("describe")
    store.write_json(folder / "vocabulary.json", pieces)
    result = {
        "architecture": asdict(architecture),
        "commit": origin.commit,
        "files": files,
        "licence": licence(folder),
        "reused_bytes": reused,
    }
    store.write_json(folder / "manifest.json", {"kind": "language_model", **asdict(params), **result})
    return result


class FromHub:
    def __init__(self, params: Params, folder: Path, ctx: Context) -> None:
        from jobs.ml import hub

        keep_to_limit(ctx)
        revision = begun_at(folder, params) or params.revision
        quick = hub.Patience(ctx.check, ctx.log, tries=3)
        self.repository = hub.look_up("model", params.source, revision, patience=quick)
        self.files = {file.name: file for file in self.repository.files}
        self.commit = self.repository.commit
        self.mark = self.repository.endpoint
        self.sizes = {name: self.files[name].size for name in choose(list(self.files), params.source)}
        self.patience = hub.Patience(ctx.check, ctx.log)
        ctx.log(f"{params.source} at {self.commit}: {len(self.sizes)} of its {len(self.files)} files are taken")

    def reuse(self, folder: Path, ctx: Context) -> int:
        """Bytes that were here already, so that they need not be fetched. Who may not fetch them gets none."""
        from jobs.ml import hub, reuse

        wanted = [self.files[name] for name in self.sizes if not (folder / name).exists()]
        here = [file for file in wanted if any(reuse.candidates(file, folder))]
        if not here:
            return 0
        hub.check_access(self.repository, self.patience)
        taken = [file for file in here if reuse.take(file, folder, ctx.check)]
        n = sum(file.size or 0 for file in taken)
        ctx.log(f"{n:,} bytes in {len(taken)} files came from what this machine has already, and are not fetched")
        return n

    def bring(self, name: str, folder: Path, advance: Advance) -> None:
        from jobs.ml import hub

        hub.fetch(self.repository, self.files[name], folder, advance, self.patience)

    def verify(self, path: Path, advance: Advance) -> str:
        from jobs.ml import hub

        return hub.verify(path, self.files[path.name], advance)


class FromFolder:
    def __init__(self, source: Path, folder: Path) -> None:
        self.source, self.commit = source, ""
        if not source.is_dir():
            said = f"{source} is a file, not a folder." if source.exists() else f"There is no folder {source}."
            raise InvalidInput(said, "Give the folder with config.json and model.safetensors.", "source")
        if folder.resolve() == source.resolve():
            raise InvalidInput(f"{source} is the folder that would be written to.", field="source")
        inner = (*source.glob("*"), *source.glob("*/config.json"))
        names = [str(path.relative_to(source)) for path in inner if path.is_file()]
        facts = {name: (source / name).stat() for name in choose(names, str(source))}
        self.sizes: dict[str, int | None] = {name: fact.st_size for name, fact in facts.items()}
        self.mark = {name: [fact.st_size, fact.st_mtime_ns] for name, fact in facts.items()}

    def reuse(self, folder: Path, ctx: Context) -> int:
        return 0

    def bring(self, name: str, folder: Path, advance: Advance) -> None:
        """A copy of its own: what happens to the source later does not reach it. Whole or not at all."""
        from jobs.ml.store import replacing

        source, target = self.source / name, folder / name
        if target.exists():
            advance(self.sizes[name] or 0)
            return
        with replacing(target) as temporary, source.open("rb") as reader, temporary.open("wb") as writer:
            while chunk := reader.read(CHUNK):
                writer.write(chunk)
                advance(len(chunk))
            after = source.stat()
            if [after.st_size, after.st_mtime_ns] != self.mark[name]:
                raise InvalidInput(
                    f"{source} was changed while it was copied.", "Try again when it is at rest.", "source"
                )

    def verify(self, path: Path, advance: Advance) -> str:
        from jobs.ml import hub

        return hub.verify(path, hub.HubFile(path.name, self.sizes[path.name]), advance)


def choose(names: list[str], source: str) -> list[str]:
    from jobs.ml.model_files import choose_files

    try:
        return choose_files(names)
    except Unusable as error:
        raise InvalidInput(f"{source}: {error}.", error.hint, error.field) from error


def begun_at(folder: Path, params: Params) -> str:
    """The commit that an earlier attempt at the same thing began to fetch: a branch may have moved since."""
    from jobs.ml.store import read_json_if_there

    begun = read_json_if_there(folder / ORIGIN)
    return begun["commit"] if begun.get("params") == asdict(params) else ""


def keep_what_belongs(folder: Path, origin: dict[str, Any]) -> None:
    """Removes files of another origin, left by an attempt with other parameters or from a changed source."""
    from jobs.ml import model_files
    from jobs.ml.store import read_json_if_there, remove_torn, write_json

    remove_torn(folder)
    if read_json_if_there(folder / ORIGIN) == origin:
        return
    for stale in folder.iterdir():
        if stale.name in MADE or stale.name.startswith(".") or model_files.is_taken(stale.name):
            stale.unlink()
    write_json(folder / ORIGIN, origin)


def weight_bytes(folder: Path) -> int:
    """What is there already of the weights, parts included."""
    return sum(path.stat().st_size for path in folder.glob("*") if ".safetensors" in path.suffixes)


def verify(folder: Path, origin: Origin, ctx: Context) -> list[dict[str, Any]]:
    """Name, size and sha256 of every file, compared with what the hub says of it."""
    from jobs.ml import language_model

    sizes = {name: (folder / name).stat().st_size for name in sorted(origin.sizes)}
    ctx.stage("verify", total=sum(sizes.values()), unit="bytes")
    advance = counter(ctx)
    files = [
        {"name": name, "bytes": size, "sha256": origin.verify(folder / name, advance)} for name, size in sizes.items()
    ]
    language_model.verify_weights(folder)
    return files


def licence(folder: Path) -> str:
    """What the model card says, "" where it says nothing."""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard((folder / "README.md").read_text(encoding="utf-8", errors="replace")).data
        said = card.get("license") or ""
        return str((card.get("license_name") if said == "other" else "") or said)[:120]
    except Exception:  # no card, or front matter that is no YAML: the model is no worse for it
        return ""
