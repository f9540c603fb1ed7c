"""Measure an SAE on tokens, and on labelled texts where some are given: every figure with its interval."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds.sources import check_reading, check_source, fewer_rows, is_path, keep_to_limit
from jobs.ml.config import AUTO

if TYPE_CHECKING:
    from jobs.ml.evaluation import Evaluation
    from jobs.ml.labelled import Labelled

LABEL = "Evaluate SAE"
QUEUE = "gpu"
RESUMABLE = True
HUB = True  # labelled texts may be there: its process gets the token of its owner
STAGES = {"load": 4.0, "measure": 66.0, "labels": 20.0, "letters": 10.0}
ON_SUCCESS = "mistudio.ingest.evaluation"

PLAN, BEGUN, FIGURES = "plan.json", "begun.json", "figures.json"
SPLITS = ("held_out", "train")


@dataclass(frozen=True)
class Params:
    model_folder: str
    tokens_folder: str
    sae_folder: str
    folder: str
    reads: tuple[str, ...]  # sites of the SAE's inputs
    tokens: int  # of the split to read, a quarter of them for the predictions
    writes: tuple[str, ...] = ()  # and of its outputs, where they are others
    split: str = "held_out"
    labelled: str = ""  # a hub id, or an absolute path of a file or folder; empty: no labelled texts
    labelled_config: str = ""
    labelled_split: str = "train"
    labelled_revision: str = ""
    labelled_encoding: str = ""
    text_column: str = ""
    label_column: str = ""
    second_label_column: str = ""
    texts: int = 4000  # labelled, at most
    absorption: bool = False
    seed: int = 0
    skip_special: bool = True
    model_batch: int | None = None  # sequences per forward pass; None: as many as are fastest here
    dtype: str = "float32"  # of the language model: one of PRECISIONS, or AUTO

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InvalidInput("There must be at least one token to read.", field="tokens")
        if self.split not in SPLITS:
            raise InvalidInput(f"There is no split {self.split}.", f"There are: {' and '.join(SPLITS)}.", "split")
        check_reading(self, "model_folder", "tokens_folder", "sae_folder", "folder")
        if self.labelled:
            check_source(self.labelled, self.labelled_revision, self.folder, "dataset")
            for field in ("text_column", "label_column"):
                if not getattr(self, field):
                    raise InvalidInput("Labelled texts need a column with the text and one with the label.", "", field)


def smaller(params: Params) -> Params | None:
    """What to try when the memory was not enough."""
    return fewer_rows(params, begun(params))


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Started again, it goes on with the first part that is not measured."""
    from jobs.ml import store
    from jobs.ml.determinism import set_up
    from jobs.ml.evaluation import NO_LABELS, Evaluation
    from jobs.ml.meter import Meter, Stretch
    from jobs.ml.saelens import load_sae
    from jobs.ml.sequences import covering
    from jobs.ml.tokens import TokenShards

    if (result := begin(params)) is not None:
        return result
    folder = Path(params.folder)
    ctx.stage("load")
    shards = TokenShards(params.tokens_folder, params.split)
    device, meter, reading = set_up(params.seed), Meter(), Stretch()
    sae = load_sae(params.sae_folder, device)
    model, dtype, rows = load(params, shards.context_length, device)
    ctx.log(f"forward passes of {rows} sequences in {dtype}")
    ctx.check()
    whole = Evaluation(model, sae, shards, folder, params.reads, params.writes, rows, params.seed)

    alone = covering(shards, params.tokens)  # sequences: the predictions after them take several passes

    def read(done: int, total: int) -> None:
        if done <= alone:
            reading.at(done * shards.context_length)
        measuring(done, total)

    measuring = ctx.reaching("measure", "sequences")
    whole.part("measured", lambda: whole.reconstruction(params.tokens, params.skip_special, read))
    meter.run(rows, shards.context_length, reading.tokens, reading.seconds)
    if params.labelled:
        label(whole, params, ctx)
    else:
        whole.found["not_measured"]["labels"] = NO_LABELS
    if params.absorption:
        spelled = ctx.reaching("letters", "words")
        whole.part("letters", lambda: whole.letters(params.model_folder, spelled))
    else:
        whole.found["not_measured"]["absorption"] = "it was not asked for"
    result = {**whole.found, "dtype": dtype, "model_batch": rows, "measured": meter.report(model)}
    store.write_json(folder / FIGURES, result)
    store.write_manifest(folder, [FIGURES], kind="evaluation", plan=plan_of(params))
    return result


def label(whole: "Evaluation", params: Params, ctx: Context) -> None:
    from jobs.ml.errors import Unusable

    told = ctx.reaching("labels", "texts")
    try:
        whole.part(
            "labels",
            lambda: whole.labels(
                params.model_folder,
                texts_of(params, whole.sae.width, ctx),
                bool(params.second_label_column),
                on_progress=told,
            ),
        )
    except Unusable as error:
        raise InvalidInput(str(error), error.hint, error.field) from error


def texts_of(params: Params, width: int, ctx: Context) -> "list[Labelled]":
    from jobs.ml.labelled import Columns, hub_rows, local_rows, sample
    from jobs.ml.pooled import most_texts

    columns = Columns(params.text_column, params.label_column, params.second_label_column)
    ctx.log(f"labelled texts of {params.labelled}")
    if is_path(params.labelled):
        rows = local_rows(Path(params.labelled), columns, params.labelled_encoding)
    else:
        from jobs.ml.hub import Patience

        keep_to_limit(ctx)
        source = (params.labelled, params.labelled_config, params.labelled_split, params.labelled_revision)
        rows = hub_rows(*source, columns, Patience(ctx.check, ctx.log, tries=3))
    texts = min(params.texts, most_texts(width))
    found = sample(rows, columns, texts=texts, seed=params.seed, check=ctx.check)
    ctx.log(f"{len(found):,} texts, as many of each class")
    return found


def plan_of(params: Params) -> dict[str, Any]:
    """What decides the figures: how many sequences are read at once does not."""
    from jobs.ml import store

    sae = store.read_manifest(Path(params.sae_folder)) or {}
    plan = {name: value for name, value in asdict(params).items() if name != "model_batch"}
    return {**plan, "reads": list(params.reads), "writes": list(params.writes), "sae": store.fingerprint(sae)}


def begin(params: Params) -> dict[str, Any] | None:
    """The result where this very evaluation is finished; what is left of another one is removed."""
    from jobs.ml import store

    folder, plan = Path(params.folder), plan_of(params)
    manifest = store.read_manifest(folder)
    if manifest and manifest["plan"] == plan:
        return store.read_json(folder / FIGURES)
    if store.read_json_if_there(folder / PLAN) != plan:
        store.remove(folder)
        store.write_json(folder / PLAN, plan)
    return None


def begun(params: Params) -> dict[str, Any]:
    """What an earlier attempt settled of what was left open."""
    from jobs.ml.store import read_json_if_there

    return read_json_if_there(Path(params.folder) / BEGUN)


def load(params: Params, context_length: int, device: str) -> tuple[Any, str, int]:
    """The model, its precision, and the sequences per forward pass; what is open is as an earlier attempt had it."""
    from jobs.ml import store
    from jobs.ml.calibration import deepest, load_calibrated

    before = begun(params)
    model, dtype, rows = load_calibrated(
        params.model_folder,
        site=deepest([*params.reads, *params.writes]),
        context_length=context_length,
        device=device,
        dtype=before.get("dtype", AUTO) if params.dtype == AUTO else params.dtype,
        rows=params.model_batch or before.get("model_batch"),
    )
    store.write_json(Path(params.folder) / BEGUN, {"dtype": dtype, "model_batch": rows})
    return model, dtype, rows
