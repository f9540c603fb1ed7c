"""Read held-out tokens once and keep where every feature of an SAE fires."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds.sources import check_reading, fewer_rows
from jobs.ml.config import AUTO

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LABEL = "Scan features"
QUEUE = "gpu"
RESUMABLE = True
STAGES = {"load": 3.0, "read": 87.0, "sort": 10.0}
ON_SUCCESS = "mistudio.ingest.scan"


@dataclass(frozen=True)
class Params:
    model_folder: str
    tokens_folder: str
    sae_folder: str
    folder: str
    reads: tuple[str, ...]  # sites of the SAE's inputs
    tokens: int  # held-out tokens to read
    writes: tuple[str, ...] = ()  # and of its outputs, where they are others
    seed: int = 0
    skip_special: bool = True
    model_batch: int | None = None  # sequences per forward pass; None: as many as are fastest here
    dtype: str = "float32"  # of the language model: one of PRECISIONS, or AUTO

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InvalidInput("There must be at least one token to read.", field="tokens")
        check_reading(self, "model_folder", "tokens_folder", "sae_folder", "folder")


def smaller(params: Params) -> Params | None:
    """What to try when the memory was not enough."""
    from jobs.ml.evidence import plan_of

    return fewer_rows(params, plan_of(Path(params.folder)))


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Started again, it goes on after the last finished chunk, to the same bytes."""
    import time

    from jobs.ml import store
    from jobs.ml.determinism import set_up
    from jobs.ml.meter import Meter, Stretch
    from jobs.ml.saelens import load_sae
    from jobs.ml.scan import scan
    from jobs.ml.tokens import TokenShards

    started = time.monotonic()
    ctx.stage("load")
    shards = TokenShards(params.tokens_folder, "held_out")
    device = set_up(params.seed)
    meter = Meter()
    sae = load_sae(params.sae_folder, device)
    model, dtype, rows = load(params, shards.context_length, device)
    ctx.log(f"forward passes of {rows} sequences in {dtype}")
    ctx.check()

    told, sorting, reading = ctx.reaching("read", "tokens"), ctx.reaching("sort"), Stretch()

    def read(done: int, total: int) -> None:
        reading.at(done)
        told(done, total)

    counts = scan(
        model,
        sae,
        params.reads,
        shards,
        params.folder,
        writes=params.writes,
        tokens=params.tokens,
        sae_sha256=store.sha256(Path(params.sae_folder) / "sae_weights.safetensors"),
        skip_special=params.skip_special,
        model_batch=rows,
        seed=params.seed,
        on_progress=read,
        on_sort=lambda share: sorting(share, 1),
    )
    meter.run(rows, shards.context_length, reading.tokens, reading.seconds)
    seconds = round(time.monotonic() - started, 1)
    return {**counts, "dtype": dtype, "model_batch": rows, "seconds": seconds, "measured": meter.report(model)}


def load(params: Params, context_length: int, device: str) -> tuple["PreTrainedModel", str, int]:
    """The model, its precision, and the sequences per forward pass; what is open is as an earlier attempt had it."""
    from jobs.ml.calibration import deepest, load_calibrated
    from jobs.ml.evidence import plan_of

    begun = plan_of(Path(params.folder))
    return load_calibrated(
        params.model_folder,
        site=deepest(params.reads),
        context_length=context_length,
        device=device,
        dtype=begun.get("dtype", AUTO) if params.dtype == AUTO else params.dtype,
        rows=params.model_batch or begun.get("model_batch"),
    )
