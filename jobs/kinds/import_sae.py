"""Bring an SAE that another library wrote, from the hub, a folder or an archive, into a folder as ours are."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds.sources import check_source, counter, is_path, keep_to_limit
from jobs.ml.errors import Unusable
from jobs.ml.site_names import head_of, module_of

if TYPE_CHECKING:
    from jobs.ml.formats.facts import Facts
    from jobs.ml.sae import Sae

LABEL = "Import SAE"
QUEUE = "cpu"
RESUMABLE = True
HUB = True  # its process gets the token of its owner
STAGES = {"look up": 3.0, "fetch": 70.0, "read": 17.0, "write": 10.0}
ON_SUCCESS = "mistudio.ingest.imported_sae"

ROOM = "import"  # beside the SAE's folder, while it is made
ORIGIN = "origin.json"


@dataclass(frozen=True)
class Params:
    source: str  # a hub id, an absolute folder or an archive
    folder: str
    path: str = ""  # of the SAE in the source
    revision: str = ""
    reads: tuple[str, ...] = ()  # sites; empty: as its files say
    writes: tuple[str, ...] = ()
    widths: dict[str, int] = field(default_factory=dict)  # of the model's sites; empty: not known
    model_name: str = ""

    def __post_init__(self) -> None:
        check_source(self.source, self.revision, self.folder, "sae")
        if ".." in Path(self.path).parts or Path(self.path).is_absolute():
            raise InvalidInput(f"The path {self.path} leads out of the source.", "Give one within.", "path")


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Started again, it keeps what was fetched and goes on at the commit it began with."""
    from jobs.ml import formats, store

    folder = Path(params.folder)
    room = folder.parent / ROOM
    for torn in (folder.parent, folder, room):
        store.remove_torn(torn)
    ctx.stage("look up")
    place, commit, licence = bring(params, room, ctx)
    ctx.stage("read")
    found = formats.find(room / "files", params.path)
    inner = "" if found == room / "files" else found.relative_to(room / "files").as_posix()
    sae, facts = formats.read(found, f"{place}/{inner}".rstrip("/"))
    ctx.check()
    reads, writes = settle(params, facts)
    ctx.log(f"{formats.FORMATS[facts.format].label}: {facts.architecture}, {facts.width:,} latents of {facts.d_in:,}")
    ctx.stage("write")
    keep(sae, folder, params, facts, reads, writes)
    result = {
        "commit": commit,
        "licence": licence,
        "path": inner,
        "format": facts.format,
        "label": formats.FORMATS[facts.format].label,
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "d_out": sae.d_out,
        "width": sae.width,
        "k": facts.k,
        "reads": list(reads),
        "writes": list(writes),
        "model_name": facts.model_name,
        "dataset": facts.dataset,
        "context_size": facts.context_size,
        "notes": list(facts.notes),
    }
    names = ("cfg.json", "sae_weights.safetensors")
    store.write_manifest(folder, names, kind="sae", imported=asdict(params), **result)
    store.remove(room)
    return result


def keep(sae: "Sae", folder: Path, params: Params, facts: "Facts", reads: Any, writes: Any) -> None:
    from jobs.ml.saelens import save_sae

    about = {"model_name": params.model_name or facts.model_name, "dataset_path": facts.dataset}
    save_sae(sae, folder, reads=reads, writes=writes, context_size=facts.context_size, **about)


def settle(params: Params, facts: "Facts") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which sites it reads and writes. Raises InvalidInput."""
    reads, writes = params.reads or facts.reads, params.writes or facts.writes
    if not reads:
        raise InvalidInput("Its files do not say which site it reads.", "Choose the site.", "site")
    if facts.transcodes and not writes:
        raise InvalidInput(
            "It is a transcoder, and its files do not say what it rebuilds.", "Choose that, too.", "writes"
        )
    if not facts.transcodes and writes:
        raise InvalidInput("It rebuilds what it reads.", "Leave the site that it writes empty.", "writes")
    check_width(params, reads, facts.d_in, "reads")
    check_width(params, writes, facts.d_out or facts.d_in, "writes")
    return reads, writes


def check_width(params: Params, sites: tuple[str, ...], width: int, does: str) -> None:
    """Raises InvalidInput. Of modules and single heads the width is seen when the model runs."""
    there = [params.widths.get(site) for site in sites]
    unknown = [
        site for site, n in zip(sites, there, strict=True) if n is None and not (module_of(site) or head_of(site))
    ]
    if unknown and params.widths:
        said = f"It {does} {', '.join(unknown)}, which this model does not have"
        raise InvalidInput(f"{said}.", "Choose the model it was trained on, and its site.", "site")
    has = sum(n for n in there if n is not None)
    if sites and None not in there and has != width:
        said = f"It {does} {width:,} dimensions, but {' and '.join(sites)} has {has:,}"
        raise InvalidInput(f"{said}.", "Choose the model it was trained on, and its site.", "site")


def bring(params: Params, room: Path, ctx: Context) -> tuple[str, str, str]:
    """Its files into room/files. Returns where they come from, the commit, and the licence that a card says."""
    if not is_path(params.source):
        return from_hub(params, room, ctx)
    source = Path(params.source)
    if source.is_dir():
        return from_folder(params, source, room, ctx)
    if not source.exists():
        raise InvalidInput(f"There is no folder or archive {source}.", "Give one where the workers run.", "source")
    return from_archive(params, source, room, ctx)


def from_hub(params: Params, room: Path, ctx: Context) -> tuple[str, str, str]:
    from jobs.ml import disk, formats, hub, store

    keep_to_limit(ctx)
    begun = store.read_json_if_there(room / ORIGIN)
    asked = store.fingerprint(asdict(params))
    revision = begun["commit"] if begun.get("asked") == asked else params.revision
    patience = hub.Patience(ctx.check, ctx.log)
    repository = hub.look_up("model", params.source, revision, patience=patience)
    if begun.get("commit") != repository.commit:
        store.remove(room)
    room.mkdir(parents=True, exist_ok=True)
    store.write_json(room / ORIGIN, {"asked": asked, "commit": repository.commit})
    chosen = formats.choose([file.name for file in repository.files], params.path)
    files = [file for file in repository.files if formats.belongs(file.name, chosen)]
    total = sum(file.size or 0 for file in files)
    disk.require_space(room, 3 * total, params.source)  # what comes, and what is made of it
    ctx.stage("fetch", total=total or None, unit="bytes")
    advance = counter(ctx)
    for file in files:
        target = room / "files" / Path(file.name).parent
        target.mkdir(parents=True, exist_ok=True)
        hub.fetch(repository, file, room / "files", advance, patience)
        hub.verify(room / "files" / file.name, file, lambda n: ctx.check())
    return params.source, repository.commit, licence_of(repository, room, patience)


def licence_of(repository: Any, room: Path, patience: Any) -> str:
    from jobs.kinds.add_model import licence
    from jobs.ml import hub

    card = next((file for file in repository.files if file.name == "README.md"), None)
    if card is None or (card.size or 0) > 2**20:
        return ""
    hub.fetch(repository, card, room, lambda n: None, patience)
    return licence(room)


def from_folder(params: Params, source: Path, room: Path, ctx: Context) -> tuple[str, str, str]:
    """A copy of its own: what happens to the source meanwhile does not reach it."""
    from jobs.ml import disk, formats

    found = formats.find(source, params.path)
    inner = [path for path in sorted(found.rglob("*")) if not path.is_symlink() and path.is_file()]
    files = [path for path in inner if formats.belongs(path.relative_to(found).as_posix(), "")]
    sizes = sum(path.stat().st_size for path in files)
    disk.require_space(room, 2 * sizes, str(source))
    fresh(room)
    ctx.stage("fetch", total=sizes or None, unit="bytes")
    advance = counter(ctx)
    for path in files:
        with path.open("rb") as reader:
            pour(reader, room / "files" / path.relative_to(source), advance)
    return str(source), "", ""


def from_archive(params: Params, source: Path, room: Path, ctx: Context) -> tuple[str, str, str]:
    from jobs.ml import archives, disk, formats
    from jobs.ml.text_files import reading

    if not archives.is_archive(source):
        hint = "Give a folder, or a zip or tar archive of one."
        raise InvalidInput(f"{source.name} is neither a folder nor an archive.", hint, "source")
    members = archives.members(source, source.name)
    chosen = formats.choose([member.name for member in members], params.path)
    taken = [member for member in members if formats.belongs(member.name, chosen)]
    sizes = sum(member.size for member in taken)
    disk.require_space(room, 2 * sizes, source.name)
    fresh(room)
    ctx.stage("fetch", total=sizes or None, unit="bytes")
    advance = counter(ctx)
    for member in taken:
        with reading(source.name), member.open() as reader:
            pour(reader, room / "files" / member.name, advance, member.size)
    return source.name, "", ""


def fresh(room: Path) -> None:
    from jobs.ml import store

    store.remove(room)
    room.mkdir(parents=True)


def pour(reader: Any, target: Path, advance: Callable[[int], None], most: int | None = None) -> None:
    """most: the bytes that an archive promised; more never come out of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with target.open("wb") as writer:
        while chunk := reader.read(2**20):
            written += len(chunk)
            if most is not None and written > most:
                raise Unusable(f"{target.name} unfolds to more than its archive says.", "Pack it again.")
            writer.write(chunk)
            advance(len(chunk))
