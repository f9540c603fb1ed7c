"""Keep the activations of sites on disk, computed once and read as often as wanted."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds.sources import check_reading, fewer_rows
from jobs.ml.cache_layout import STORED
from jobs.ml.config import AUTO

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LABEL = "Cache activations"
QUEUE = "gpu"
RESUMABLE = True
STAGES = {"verify": 5.0, "load": 2.0, "read": 93.0}
ON_SUCCESS = "mistudio.ingest.activation_cache"


@dataclass(frozen=True)
class Params:
    model_folder: str
    tokens_folder: str
    folder: str
    sites: tuple[str, ...]
    tokens: int  # to read, special ones included: whole sequences from the beginning of the split
    split: str = "train"
    stored: str = "bfloat16"
    skip_special: bool = True
    model_batch: int | None = None  # sequences per forward pass; None: as many as are fastest here
    dtype: str = AUTO  # of the language model: one of PRECISIONS, or AUTO
    model_identity: str = ""  # the same for equal weights

    def __post_init__(self) -> None:
        if not self.sites or len(set(self.sites)) != len(self.sites):
            raise InvalidInput("Name at least one site, and each of them once.", field="sites")
        if self.tokens < 1:
            raise InvalidInput("There must be at least one token to read.", field="tokens")
        if self.stored not in STORED:
            raise InvalidInput(f"Activations are stored as {', '.join(STORED)}.", field="stored")
        check_reading(self, "model_folder", "tokens_folder", "folder")


def smaller(params: Params) -> Params | None:
    """What to try when the memory was not enough."""
    from jobs.ml.activation_cache import plan_of

    return fewer_rows(params, plan_of(Path(params.folder)))


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Makes the folder what it should be: started again, it compares what is there with its checksums, and computes
    what is missing or damaged."""
    from jobs.ml.activation_cache import write_cache
    from jobs.ml.meter import Meter
    from jobs.ml.tokens import TokenShards

    shards = TokenShards(params.tokens_folder, params.split)
    ctx.stage("verify", total=1)
    meter, source = Meter(), Source(params, shards.context_length, ctx)
    dtype, rows = source.settle()
    manifest, written, seconds = write_cache(
        source.load,
        list(params.sites),
        shards,
        params.folder,
        tokens=params.tokens,
        dtype=dtype,
        stored=params.stored,
        skip_special=params.skip_special,
        model_batch=rows,
        model_identity=params.model_identity,
        on_progress=ctx.reaching("read", "tokens"),
        on_verify=ctx.reach,
        on_damage=lambda names: ctx.log(f"missing or changed, computed again: {', '.join(names)}"),
    )
    rows = manifest["plan"]["model_batch"]
    meter.run(rows, shards.context_length, written, seconds)
    return {
        "tokens": manifest["tokens"],
        "sequences": manifest["plan"]["sequences"],
        "shards": len(manifest["shards"]),
        "dtype": dtype,
        "model_batch": rows,
        "statistics": manifest["statistics"],
        "tokens_per_second": written / seconds if written else None,  # None: there was nothing left to do
        "measured": meter.report(source.model) if source.model else None,
    }


class Source:
    """The language model, loaded where it is first needed: to try it, or to read the text with it."""

    def __init__(self, params: Params, context_length: int, ctx: Context) -> None:
        self.params, self.context_length, self.ctx = params, context_length, ctx
        self.model: PreTrainedModel | None = None
        self.dtype, self.rows = params.dtype, params.model_batch

    def settle(self) -> tuple[str, int]:
        """The precision, and the sequences per forward pass. What is open is as an earlier attempt had it; in the first
        one it is decided by measurement."""
        from jobs.ml.activation_cache import plan_of

        begun = plan_of(Path(self.params.folder))
        self.dtype = begun.get("dtype", AUTO) if self.dtype == AUTO else self.dtype
        self.rows = self.rows or begun.get("model_batch")
        if self.dtype == AUTO or self.rows is None:
            self.load()
        assert self.rows is not None
        return self.dtype, self.rows

    def load(self) -> "PreTrainedModel":
        from jobs.ml.calibration import deepest, load_calibrated
        from jobs.ml.determinism import set_up

        if self.model is None:
            self.ctx.stage("load")
            self.model, self.dtype, self.rows = load_calibrated(
                self.params.model_folder,
                site=deepest(self.params.sites),
                context_length=self.context_length,
                device=set_up(0),
                dtype=self.dtype,
                rows=self.rows,
            )
            self.ctx.log(f"forward passes of {self.rows} sequences in {self.dtype}")
            self.ctx.check()
        return self.model
