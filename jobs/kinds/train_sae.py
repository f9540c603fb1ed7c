"""Fit sparse autoencoders to activations of one language model, side by side, and measure each on held-out tokens."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds.sources import check_absolute, check_precision
from jobs.ml.config import AUTO, PRECISIONS, SELECTIONS, UNSETTLED_ROWS, BadConfig, Member, TrainConfig
from jobs.ranks import company

if TYPE_CHECKING:
    from jobs.ml.parallel import Ranks
    from jobs.ml.train import Run

LABEL = "Train SAE"
QUEUE = "gpu"
RESUMABLE = True
FINISH_EARLY = True
STAGES = {"load": 2.0, "train": 83.0, "evaluate": 15.0}
ON_SUCCESS = "mistudio.ingest.training"

GLANCES, GLANCE_TOKENS = 10, 2048  # how often, and on how many held-out tokens, predictions are looked at on the way
BEGUN, RESULT = "begun.json", "result.json"
WISHES = ("", "finish", "pause", "cancel", "stop")  # as the first of several processes tells the others


@dataclass(frozen=True)
class Params:
    model_folder: str
    tokens_folder: str
    folder: str
    saes: tuple[dict[str, Any], ...]  # of each: folder, reads, and what else Member and TrainConfig take
    tokens: int
    batch_tokens: int = 4096
    micro_batch_tokens: int | None = None
    dead_after_tokens: int | None = None
    selection: str = AUTO  # the precision in which active latents are chosen: one of SELECTIONS, or AUTO
    seed: int = 0  # of the order of the tokens
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
    processes: int = 1  # of this machine, each with its share of every batch, and a GPU of its own where there are some

    def __post_init__(self) -> None:
        if not self.saes:
            raise InvalidInput("Give at least one SAE to train.", field="saes")
        try:
            self.members()
        except BadConfig as error:
            raise InvalidInput(str(error), error.hint, error.field) from error
        except TypeError as error:
            raise InvalidInput(f"An SAE has a setting that is not known: {error}.", field="saes") from error
        check_precision(self.dtype, (AUTO, *PRECISIONS))
        for field in ("buffer_tokens", "model_batch", "evaluation_tokens", "processes"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InvalidInput(f"{field} must be at least 1.", field=field)
        if self.batch_tokens % self.processes:
            said = f"batch_tokens must be a multiple of the {self.processes} processes that share a batch."
            raise InvalidInput(said, field="processes")
        check_absolute(self, "model_folder", "tokens_folder", "folder")
        for field, folders in (("caches", self.caches), ("saes", self.sae_folders)):
            if not all(Path(folder).is_absolute() for folder in folders):
                raise InvalidInput(f"The folders of {field} must be absolute paths.", field=field)
        if self.cache_weights and len(self.cache_weights) != len(self.caches):
            raise InvalidInput("Give one weight for each cache, or none.", field="cache_weights")
        if self.selection not in (AUTO, *SELECTIONS):
            raise InvalidInput(f"selection must be one of {', '.join((AUTO, *SELECTIONS))}.", field="selection")

    @property
    def sae_folders(self) -> list[str]:
        return [str(one["folder"]) for one in self.saes]

    def members(self) -> list[Member]:
        """Raises BadConfig, TypeError."""
        shared = {
            name: getattr(self, name)
            for name in ("tokens", "batch_tokens", "micro_batch_tokens", "dead_after_tokens", "log_every")
        }
        return [
            member(**{name: value for name, value in one.items() if name != "folder"}, **shared) for one in self.saes
        ]


def member(reads: Sequence[str], writes: Sequence[str] = (), **settings: Any) -> Member:
    """Raises BadConfig."""
    one = Member(TrainConfig(**settings), tuple(reads), tuple(writes))
    one.check()
    return one


def smaller(params: Params) -> Params | None:
    """What to try when the memory was not enough: the same batches in smaller parts, so the same result."""
    part = params.micro_batch_tokens or params.batch_tokens // params.processes
    rows = params.model_batch or read(params, BEGUN).get("model_batch", UNSETTLED_ROWS)
    less = replace(params, micro_batch_tokens=max(1, part // 2), model_batch=max(1, rows // 2))
    return less if part > 1 or rows > 1 else None


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Started again, it goes on from the last checkpoint, to the same weights."""
    from jobs.ml import store

    told = store.fingerprint(asdict(params))
    if (before := read(params, RESULT)).get("params") == told:
        return before["result"]
    ctx.stage("load")
    result = fit(params, ctx)
    store.write_json(Path(params.folder) / RESULT, {"params": told, "result": result})
    store.remove(Path(params.folder) / "checkpoints")
    return result


def assist(params: Params, ranks: "Ranks") -> None:
    """What each of the other processes does: its share of every step, until the first leaves."""
    run = begin(params, ranks)
    for tick in run.run():
        wish = WISHES[ranks.told(0)]
        if wish and (wish != "finish" or tick.step):
            return


def begin(params: Params, ranks: "Ranks") -> "Run[Any]":
    """Where the last attempt left it. What is open, the first process settles for all."""
    from jobs.ml import checkpoint, training

    folder = Path(params.folder)
    own = (
        *("model_folder", "tokens_folder", "seed", "buffer_tokens", "model_batch", "skip_special", "dtype"),
        *("selection", "caches", "cache_weights"),
    )
    settings = {name: getattr(params, name) for name in own}
    with ranks.first_goes_first():
        run = training.begin(params.members(), begun=folder / BEGUN, ranks=ranks, **settings)
        checkpoint.resume(run, folder / "checkpoints")
    return run


def fit(params: Params, ctx: Context) -> dict[str, Any]:
    """The others help to train; to write the last checkpoint and to evaluate is the work of one."""
    from jobs.ml import training
    from jobs.ml.checkpoint_files import checkpoints
    from jobs.ml.meter import Meter

    with company("train_sae", asdict(params), params.processes) as ranks:
        meter = Meter()
        saved = checkpoints(Path(params.folder) / "checkpoints")
        run = begin(params, ranks)
        ctx.log(training.source_of(run.stream) + (f", shared by {ranks.size} processes" if ranks.size > 1 else ""))
        ctx.check()
        if run.step:
            ctx.log(f"goes on from step {run.step} of {run.config.steps}")
        elif saved and not saved[-1].exists():
            ctx.log("begins anew: what was saved is not whole, or of other settings or another version of miStudio")
        train(run, params, ctx)
    save(run, params, ctx)
    ctx.check()
    if not run.finished:  # it left the loop for a wish that a later one took back
        return fit(params, ctx)
    for n, trainer in enumerate(run.trainers, 1):
        if trainer.diverged is not None:
            why = trainer.divergence()
            ctx.log(f"SAE {n} of {len(run.trainers)}: {why} {why.hint}")
    ctx.stage("evaluate", total=1)
    names = {"model_name": params.model_name, "dataset_path": params.dataset_name}
    share, tokens = lambda done, total: ctx.reach(done / total), params.evaluation_tokens
    result = training.finish(run, params.sae_folders, tokens=tokens, on_progress=share, **names)
    if not params.caches and params.processes == 1:  # else it is no measurement of the model on one device
        meter.run(run.stream.model_batch, run.stream.shards.context_length, run.tokens, run.seconds)
    result["measured"] = meter.report(run.stream.model)
    return result


def read(params: Params, name: str) -> dict[str, Any]:
    """What an attempt before this one left: how it began, and what it ended with, for it may have been killed on
    its way to say so."""
    from jobs.ml import store

    return store.read_json_if_there(Path(params.folder) / name)


def save(run: "Run[Any]", params: Params, ctx: Context) -> float:
    """A checkpoint; the seconds that it took."""
    from jobs.ml import checkpoint

    began = time.monotonic()
    checkpoint.save(run, Path(params.folder) / "checkpoints")
    cost = time.monotonic() - began
    ctx.log(f"step {run.step:,}: checkpoint in {cost:.1f} s")
    return cost


def train(run: "Run[Any]", params: Params, ctx: Context) -> None:
    """Until the last step, or until it is wished otherwise. What it ended with is still to be saved."""
    from jobs.ml import training
    from jobs.ml.meter import memory_now

    ctx.stage("train", total=run.config.steps * params.batch_tokens, unit="tokens")
    ctx.at(run.tokens)
    saved = told = time.monotonic()
    cost, tokens, seen = 0.0, run.tokens, run.step * GLANCES // run.config.steps
    for tick in run.run():
        ctx.at(tick.tokens)
        if tick.metrics:
            now = time.monotonic()
            values = {f"{name}.{n}": value for n, one in enumerate(tick.metrics) for name, value in one.items()}
            if tick.step * GLANCES // tick.steps > seen:
                seen = tick.step * GLANCES // tick.steps
                for n, one in enumerate(training.glance(run, GLANCE_TOKENS)):
                    values |= {f"{name}.{n}": value for name, value in one.items()}
            speed = (tick.tokens - tokens) / max(1e-6, now - told)
            ctx.metric(tick.step, **values, tokens_per_second=speed, memory=memory_now(run.device))
            told, tokens = now, tick.tokens
        wish = WISHES[run.ranks.told(WISHES.index(ctx.wish() or ""))]
        run.stopped = wish == "finish" and tick.step > 0  # there is nothing to keep before the first step
        if run.stopped or wish in ("pause", "cancel", "stop"):
            return
        # A large SAE takes long to write: a twentieth of the time at most, unless every step is asked for.
        pause = max(params.checkpoint_seconds, 20 * cost) if params.checkpoint_seconds else 0
        if time.monotonic() - saved > pause:
            cost = save(run, params, ctx)
            saved = time.monotonic()
