"""Write an SAE in the format of another library, certify it there, pack it, and push it to the hub where that is
wished."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.context import Context
from jobs.errors import InvalidInput, JobError
from jobs.kinds.sources import check_absolute
from jobs.ml.formats import NEURONPEDIA, WRITTEN
from jobs.ml.hub_names import is_hub_id

if TYPE_CHECKING:
    from jobs.ml.formats.certify import Certificate
    from jobs.ml.neuronpedia import Source
    from jobs.ml.sae import Sae

LABEL = "Export SAE"
QUEUE = "cpu"
RESUMABLE = True
HUB = True  # its process gets the token of its owner
STAGES = {"write": 25.0, "certify": 35.0, "pack": 20.0, "push": 20.0}
ON_SUCCESS = "mistudio.ingest.export"

ROOM = "files"  # what is packed and pushed, while that is done
LONGEST = 96  # letters of a file's name


@dataclass(frozen=True)
class Params:
    sae_folder: str
    folder: str
    format: str
    about: dict[str, Any] = field(default_factory=dict)  # see jobs.ml.formats.card
    module: str = ""  # path of the module that puts the site out, in the transformers model; empty: none does
    repository: str = ""  # of the hub; empty: it is not pushed
    private: bool = True
    scan_folder: str = ""  # for formats of features
    tokens_folder: str = ""
    model_folder: str = ""

    def __post_init__(self) -> None:
        check_absolute(self, "sae_folder", "folder")
        if self.repository and not (is_hub_id(self.repository) and "/" in self.repository):
            raise InvalidInput(f"“{self.repository[:200]}” is no id of the hub.", "An id is owner/name.", "repository")


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Started again it begins anew, but sends nothing twice: the hub knows what came."""
    from jobs.ml import disk, store

    folder = Path(params.folder)
    room = folder / ROOM
    store.remove(room)
    store.remove_torn(folder)
    disk.require_space(folder, 2 * expected(params), "The export")  # the files, and the archive of them
    room.mkdir(parents=True)
    try:
        return made(params, folder, room, ctx)
    finally:
        store.remove(room)


def made(params: Params, folder: Path, room: Path, ctx: Context) -> dict[str, Any]:
    from jobs.ml import store

    ctx.stage("write", total=1)
    certificate, inner = written(params, room, ctx)
    (room / "README.md").write_text(told(params, inner, certificate), encoding="utf-8")
    ctx.stage("pack", total=weight(room), unit="bytes")
    archive = pack(room, folder / f"{file_name(params.about.get('name', 'sae'))}-{params.format}.zip", ctx)
    pushed: dict[str, Any] = {}
    if params.repository:
        pushed = send(params, room, ctx)
    store.write_manifest(folder, [archive.name], kind="export", format=params.format, certificate=certificate, **pushed)
    size = archive.stat().st_size
    return {"archive": archive.name, "bytes": size, "inner": inner, "certificate": certificate, **pushed}


def expected(params: Params) -> int:
    """Bytes that will be written."""
    if params.format != NEURONPEDIA:
        return weight(Path(params.sae_folder))
    from jobs.ml.neuronpedia import estimated_bytes

    return estimated_bytes(scanned(params))


def scanned(params: Params) -> "Source":
    from jobs.ml.neuronpedia import opened

    folders = (params.scan_folder, params.tokens_folder, params.sae_folder, params.model_folder)
    return opened(*map(Path, folders), about=params.about)


def written(params: Params, room: Path, ctx: Context) -> tuple[dict[str, Any] | None, str]:
    """The certificate, and the folder within."""
    if params.format == NEURONPEDIA:
        from jobs.ml.neuronpedia import write_batches

        return None, write_batches(room, scanned(params), params.about, ctx.reach)
    from jobs.ml import formats, saelens
    from jobs.ml.formats.card import too_little
    from jobs.ml.formats.certify import Uncertified, certify

    sae = saelens.load_sae(params.sae_folder)
    reads, writes = saelens.sites_of(params.sae_folder)
    inner = folder_name(params, reads, writes, sae)
    names = {"model_name": params.about.get("model", ""), "dataset_path": params.about.get("dataset", "")}
    size = params.about.get("context_size")
    formats.write(sae, room / inner, params.format, reads=reads, writes=writes, context_size=size, **names)
    ctx.check()
    ctx.stage("certify", total=1)
    certificate = certify(sae, room / inner, params.format, ctx.check)
    if isinstance(certificate, Uncertified):
        ctx.log(f"not certified: {too_little(certificate.as_json())}")
    elif not certificate.holds:
        raise JobError("CORRUPT_DATA", refused(certificate), "Nothing was packed or sent. Scan the SAE: is it alive?")
    return certificate.as_json(), inner


def refused(found: "Certificate") -> str:
    if not found.active:
        return "No latent is active on any of the vectors, so nothing can be compared."
    differs = f"activations by {found.codes:.1e}, reconstructions by {found.x_hat:.1e} of the largest"
    return f"{found.package} computes something else from the files: {differs}, {found.at_threshold} at thresholds."


def folder_name(params: Params, reads: list[str], writes: list[str], sae: "Sae") -> str:
    """As the library names its folders."""
    from jobs.ml.formats.hooks import below_base_model, layer_of

    site = (writes or reads)[0]
    if params.format == "sparsify":
        return file_name(below_base_model(params.module) or site)
    if params.format == "gemma_scope":
        layer, l0 = layer_of(site), params.about.get("l0")
        place = f"layer_{layer}" if layer is not None else file_name(site)
        return f"{place}/width_{sae.width}/average_l0_{round(l0) if l0 is not None else 'unknown'}"
    return file_name(site)


def file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip(".-")[:LONGEST] or "sae"


def told(params: Params, inner: str, certificate: dict[str, Any] | None) -> str:
    from jobs.ml.formats.card import card

    return card(params.format, WRITTEN[params.format], inner, params.about, certificate)


def weight(folder: Path) -> int:
    """Bytes of its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def pack(room: Path, archive: Path, ctx: Context) -> Path:
    """The same bytes for the same files: weights cannot be packed, so they are not."""
    import zipfile

    from jobs.ml import store

    for old in archive.parent.glob("*.zip"):
        old.unlink()
    files = sorted(path for path in room.rglob("*") if path.is_file())
    done = 0
    with store.replacing(archive) as temporary, zipfile.ZipFile(temporary, "w") as target:
        for path in files:
            info = zipfile.ZipInfo(path.relative_to(room).as_posix())
            info.file_size = path.stat().st_size
            info.external_attr = 0o644 << 16
            packed = path.suffix in (".json", ".md")
            info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            with path.open("rb") as reader, target.open(info, "w") as writer:
                while chunk := reader.read(2**22):
                    writer.write(chunk)
                    done += len(chunk)
                    ctx.reach(done)
    return archive


def send(params: Params, room: Path, ctx: Context) -> dict[str, Any]:
    from jobs.ml.hub_push import push

    ctx.stage("push", total=weight(room), unit="bytes")
    message = f"{params.about.get('name', 'SAE')}, exported"
    done = push(room, params.repository, message, private=params.private, check=ctx.check, advance=ctx.advance)
    ctx.log(f"pushed to {params.repository} at {done.commit}")
    return {"repository": params.repository, "commit": done.commit, "url": done.url}
