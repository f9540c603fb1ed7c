"""Read every file of a language model, compare it with what the registry knows of it, and describe it anew."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds.sources import counter

LABEL = "Verify language model"
QUEUE = "cpu"
RESUMABLE = False
STAGES = {"verify": 95.0, "describe": 5.0}
ON_SUCCESS = "mistudio.ingest.verification"


@dataclass(frozen=True)
class Params:
    folder: str
    files: list[dict[str, Any]]  # name, bytes, sha256
    describe: bool = True  # whole files: their sites and structure, of which more may be known than when they came

    def __post_init__(self) -> None:
        check_files(self.folder, self.files)


def check_files(folder: str, files: list[dict[str, Any]]) -> None:
    if not Path(folder).is_absolute():
        raise InvalidInput("The folder must be an absolute path.", field="folder")
    if not files:
        raise InvalidInput("No checksums are known of this model.", "Add the model again.", "files")


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """What it finds wrong stays in the model's folder, and no job uses the model as long as it does."""
    folder = Path(params.folder)
    damaged = examine(folder, params.files, ctx)
    remember(folder, damaged)
    for name, wrong in damaged.items():
        ctx.log(f"{name} {wrong}")
    ctx.stage("describe")
    told = {"files": len(params.files), "bytes": sum(file["bytes"] for file in params.files), "damaged": damaged}
    return {**told, **described(folder)} if params.describe and not damaged else told


def examine(folder: Path, files: list[dict[str, Any]], ctx: Context) -> dict[str, str]:
    from jobs.ml import whole

    ctx.stage("verify", total=sum(file["bytes"] for file in files), unit="bytes")
    return whole.examine(folder, files, counter(ctx))


def remember(folder: Path, damaged: dict[str, str]) -> None:
    from jobs.ml import store, whole

    if damaged:
        folder.mkdir(parents=True, exist_ok=True)
        store.write_json(folder / whole.DAMAGED, damaged)
    else:
        (folder / whole.DAMAGED).unlink(missing_ok=True)


def described(folder: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from jobs.ml.language_model import read_architecture

    found = read_architecture(folder)
    return {"sites": [asdict(site) for site in found.sites], "structure": [asdict(part) for part in found.structure]}
