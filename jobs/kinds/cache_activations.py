"""Keep the activations of sites on disk, computed once and read as often as wanted."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds.sources import check_precision
from jobs.ml.cache_layout import STORED

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
    model_batch: int = 8  # sequences per forward pass
    dtype: str = "float32"  # of the language model
    model_identity: str = ""  # the same for equal weights

    def __post_init__(self) -> None:
        if not self.sites or len(set(self.sites)) != len(self.sites):
            raise InvalidInput("Name at least one site, and each of them once.", field="sites")
        if self.tokens < 1:
            raise InvalidInput("There must be at least one token to read.", field="tokens")
        if self.model_batch < 1:
            raise InvalidInput("A forward pass reads at least one sequence.", field="model_batch")
        check_precision(self.dtype)
        if self.stored not in STORED:
            raise InvalidInput(f"Activations are stored as {', '.join(STORED)}.", field="stored")
        for field in ("model_folder", "tokens_folder", "folder"):
            if not Path(getattr(self, field)).is_absolute():
                raise InvalidInput(f"{field} must be an absolute path.", field=field)


def smaller(params: Params) -> Params | None:
    """What to try when the memory was not enough."""
    return replace(params, model_batch=params.model_batch // 2) if params.model_batch > 1 else None


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Makes the folder what it should be: started again, it compares what is there with its checksums, and computes
    what is missing or damaged."""
    from jobs.ml.activation_cache import write_cache
    from jobs.ml.determinism import set_up
    from jobs.ml.language_model import load_model
    from jobs.ml.meter import Meter
    from jobs.ml.tokens import TokenShards

    shards = TokenShards(params.tokens_folder, params.split)
    ctx.stage("verify", total=1)
    meter, loaded = Meter(), []

    def load() -> Any:
        ctx.stage("load")
        loaded.append(load_model(params.model_folder, set_up(0), params.dtype))
        return loaded[0]

    def on_progress(done: int, total: int) -> None:
        if ctx.snapshot.stage != "read":
            ctx.stage("read", total=total, unit="tokens")
        ctx.at(done)
        ctx.check()

    def on_verify(share: float) -> None:
        ctx.at(share)
        ctx.check()

    manifest, written, seconds = write_cache(
        load,
        list(params.sites),
        shards,
        params.folder,
        tokens=params.tokens,
        dtype=params.dtype,
        stored=params.stored,
        skip_special=params.skip_special,
        model_batch=params.model_batch,
        model_identity=params.model_identity,
        on_progress=on_progress,
        on_verify=on_verify,
        on_damage=lambda names: ctx.log(f"missing or changed, computed again: {', '.join(names)}"),
    )
    rows = manifest["plan"]["model_batch"]
    meter.run(rows, shards.context_length, written, seconds)
    return {
        "tokens": manifest["tokens"],
        "sequences": manifest["plan"]["sequences"],
        "shards": len(manifest["shards"]),
        "model_batch": rows,
        "statistics": manifest["statistics"],
        "tokens_per_second": written / seconds if written else None,  # None: there was nothing left to do
        "measured": meter.report(loaded[0]) if loaded else None,
    }
