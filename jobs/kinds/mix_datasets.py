"""Make one dataset of several: by weight, with limits, without what came before."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds.documents import bring, check_limits, finished
from jobs.ml.errors import Unusable

LABEL = "Mix datasets"
QUEUE = "cpu"
RESUMABLE = True
STAGES = {"look up": 2.0, "read": 96.0, "describe": 2.0}
ON_SUCCESS = "mistudio.ingest.dataset"

ENDS = ("first", "all")
MOST_PARTS = 32


@dataclass(frozen=True)
class Params:
    parts: list[dict[str, Any]]  # folder, name, weight, max_documents, max_bytes
    folder: str
    seed: int = 0
    ends: str = "first"  # the mixture ends when the first part is used up, or when all are
    deduplicate: bool = True
    max_documents: int | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.parts) <= MOST_PARTS:
            raise InvalidInput(f"A mixture has 1 to {MOST_PARTS} parts.", "Choose the datasets.", "parts")
        for part in self.parts:
            check_part(part)
        if len({part["folder"] for part in self.parts}) < len(self.parts):
            raise InvalidInput("A dataset can be one part only.", "Give it a larger weight instead.", "parts")
        if self.ends not in ENDS:
            raise InvalidInput(f"“{self.ends}” is neither first nor all.", field="ends")
        if not 0 <= self.seed < 2**63:
            raise InvalidInput("The seed is a whole number from 0.", field="seed")
        check_limits(self.max_documents, self.max_bytes)
        if not Path(self.folder).is_absolute():
            raise InvalidInput("The folder to write to must be absolute.", field="folder")


def check_part(part: dict[str, Any]) -> None:
    known = {"folder", "name", "weight", "max_documents", "max_bytes"}
    if not {"folder", "name"} <= part.keys() <= known or not Path(part["folder"]).is_absolute():
        raise InvalidInput(f"A part has an absolute folder and a name, and may have {', '.join(known)}.", field="parts")
    weight = part.get("weight", 1.0)
    if not isinstance(weight, int | float) or not math.isfinite(weight) or weight <= 0:
        raise InvalidInput(f"The weight of {part['name']} must be more than 0.", "1 for each is usual.", "parts")
    try:
        check_limits(part.get("max_documents"), part.get("max_bytes"))
    except InvalidInput as refused:
        raise InvalidInput(f"{part['name']}: {refused.message}", refused.hint, "parts") from refused


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Started again, it keeps the shards that are whole and goes on after them, to the same bytes."""
    from jobs.ml.mixed_documents import MixedDocuments, Part

    Path(params.folder).mkdir(parents=True, exist_ok=True)
    if result := finished(params):
        return result
    parts = [Part(**part) for part in params.parts]
    try:
        ctx.stage("look up")
        source = MixedDocuments(parts, params.seed, params.ends, params.deduplicate, params.max_bytes)
        return bring(params, source, " and ".join(part.name for part in parts), ctx)
    except Unusable as error:
        raise InvalidInput(str(error), error.hint, error.field) from error
