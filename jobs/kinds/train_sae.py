"""Fit a sparse autoencoder to the activations of one site, and measure it on held-out tokens."""

import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds.sources import check_precision
from jobs.ml.config import AUTO, PRECISIONS, UNSETTLED_ROWS, BadConfig, TrainConfig

if TYPE_CHECKING:
    from jobs.ml.train import Trainer

LABEL = "Train SAE"
QUEUE = "gpu"
RESUMABLE = True
FINISH_EARLY = True
STAGES = {"load": 2.0, "train": 83.0, "evaluate": 15.0}
ON_SUCCESS = "mistudio.ingest.training"

BEGUN, RESULT = "begun.json", "result.json"


@dataclass(frozen=True)
class Params:
    model_folder: str
    tokens_folder: str
    folder: str
    sae_folder: str
    site: str
    width: int
    tokens: int
    architecture: str = "topk"
    k: int | None = None
    l1_coefficient: float | None = None
    batch_tokens: int = 4096
    micro_batch_tokens: int | None = None
    lr: float | None = None
    dead_after_tokens: int | None = None
    seed: int = 0
    skip_special: bool = True
    buffer_tokens: int = 2**16  # mixed together before they are cut to batches
    model_batch: int | None = None  # sequences per forward pass; None: as many as are fastest here
    dtype: str = "float32"  # of the language model: one of PRECISIONS, or AUTO
    evaluation_tokens: int = 2**17
    log_every: int = 10  # steps
    checkpoint_seconds: float = 60.0
    model_name: str = ""
    dataset_name: str = ""
    caches: tuple[str, ...] = ()  # folders of activation caches to read in the place of running the model
    cache_weights: tuple[float, ...] = ()  # shares of each batch; empty: by number of tokens

    def __post_init__(self) -> None:
        try:
            self.config()
        except BadConfig as error:
            raise InvalidInput(str(error), error.hint, error.field) from error
        check_precision(self.dtype, (AUTO, *PRECISIONS))
        for field in ("buffer_tokens", "model_batch", "evaluation_tokens"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InvalidInput(f"{field} must be at least 1.", field=field)
        for field in ("model_folder", "tokens_folder", "folder", "sae_folder"):
            if not Path(getattr(self, field)).is_absolute():
                raise InvalidInput(f"{field} must be an absolute path.", field=field)
        if not all(Path(folder).is_absolute() for folder in self.caches):
            raise InvalidInput("caches must be absolute paths.", field="caches")
        if self.cache_weights and len(self.cache_weights) != len(self.caches):
            raise InvalidInput("Give one weight for each cache, or none.", field="cache_weights")

    def config(self) -> TrainConfig:
        """Raises BadConfig."""
        own = asdict(self)
        return TrainConfig(**{field.name: own[field.name] for field in fields(TrainConfig) if field.name in own})


def smaller(params: Params) -> Params | None:
    """What to try when the memory was not enough: the same batches in smaller parts, so the same result."""
    part = params.micro_batch_tokens or params.batch_tokens
    rows = params.model_batch or read(params, BEGUN).get("model_batch", UNSETTLED_ROWS)
    less = replace(params, micro_batch_tokens=max(1, part // 2), model_batch=max(1, rows // 2))
    return less if part > 1 or rows > 1 else None


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Started again, it goes on from the last checkpoint, to the same weights."""
    from jobs.ml import checkpoint, store, training
    from jobs.ml.meter import Meter

    folder = Path(params.folder)
    told = store.fingerprint(asdict(params))
    if (before := read(params, RESULT)).get("params") == told:
        return before["result"]
    ctx.stage("load")
    own = (
        *("model_folder", "tokens_folder", "site", "buffer_tokens", "model_batch", "skip_special", "dtype"),
        *("caches", "cache_weights"),
    )
    meter = Meter()
    trainer = training.begin(params.config(), begun=folder / BEGUN, **{name: getattr(params, name) for name in own})
    ctx.log(training.source_of(trainer.stream))
    ctx.check()
    if checkpoint.resume(trainer, folder / "checkpoints"):
        ctx.log(f"goes on from step {trainer.step} of {trainer.config.steps}")
    train(trainer, params, ctx)
    ctx.stage("evaluate", total=1)

    def on_progress(done: int, total: int) -> None:
        ctx.at(done / total)
        ctx.check()

    names = {"model_name": params.model_name, "dataset_path": params.dataset_name}
    tokens = params.evaluation_tokens
    result = training.finish(trainer, params.sae_folder, tokens=tokens, on_progress=on_progress, **names)
    if not params.caches:  # else the model was run to evaluate alone
        meter.run(trainer.stream.model_batch, trainer.stream.shards.context_length, trainer.tokens, trainer.seconds)
    result["measured"] = meter.report(trainer.stream.model)
    store.write_json(folder / RESULT, {"params": told, "result": result})
    store.remove(folder / "checkpoints")
    return result


def read(params: Params, name: str) -> dict[str, Any]:
    """What an attempt before this one left: how it began, and what it ended with, for it may have been killed on
    its way to say so."""
    from jobs.ml import store

    path = Path(params.folder) / name
    return store.read_json(path) if path.is_file() else {}


def train(trainer: "Trainer", params: Params, ctx: Context) -> None:
    """Until the last step, or until it is wished otherwise; the end is a checkpoint in every case."""
    from jobs.ml import checkpoint

    folder = Path(params.folder) / "checkpoints"
    ctx.stage("train", total=trainer.config.steps * params.batch_tokens, unit="tokens")
    ctx.at(trainer.tokens)
    saved = told = time.monotonic()
    cost, tokens = 0.0, trainer.tokens
    for tick in trainer.run():
        ctx.at(tick.tokens)
        if tick.metrics:
            now = time.monotonic()
            ctx.metric(tick.step, **tick.metrics, tokens_per_second=(tick.tokens - tokens) / max(1e-6, now - told))
            told, tokens = now, tick.tokens
        wish = ctx.wish()  # asked once: what is wished for between here and ctx.check() would find no checkpoint
        if wish == "finish" and tick.step:  # there is nothing to keep before the first step
            trainer.stopped = True
            break
        interrupted = wish in ("pause", "cancel", "stop")
        began = time.monotonic()
        # A large SAE takes long to write: a twentieth of the time at most, unless every step is asked for.
        pause = max(params.checkpoint_seconds, 20 * cost) if params.checkpoint_seconds else 0
        if interrupted or began - saved > pause:
            checkpoint.save(trainer, folder)
            saved = time.monotonic()
            cost = saved - began
            ctx.log(f"step {tick.step:,}: checkpoint in {cost:.1f} s")
        if interrupted:
            ctx.check()
    checkpoint.save(trainer, folder)
