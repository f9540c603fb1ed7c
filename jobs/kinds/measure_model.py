"""Load a language model in a chosen precision and run it for some seconds: how fast it is here, how much it takes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds.sources import check_precision

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from jobs.ml.sites import Site

LABEL = "Measure language model"
QUEUE = "gpu"
RESUMABLE = False
STAGES = {"load": 30.0, "run": 70.0}

LONGEST_PASS = 60.0  # seconds: larger batches are left out when they would take longer


@dataclass(frozen=True)
class Params:
    model_folder: str
    dtype: str = "float32"
    context_length: int | None = None  # tokens of a sequence; None: the model's, 512 at most
    rows: list[int] = field(default_factory=lambda: [1, 4, 16])  # sequences in a forward pass, each measured
    seconds: float = 2.0  # for each of them, one pass at least
    seed: int = 0

    def __post_init__(self) -> None:
        check_precision(self.dtype)
        if not Path(self.model_folder).is_absolute():
            raise InvalidInput("The folder must be an absolute path.", field="model_folder")
        if self.context_length is not None and self.context_length < 2:
            raise InvalidInput("A sequence has at least 2 tokens.", field="context_length")
        if not self.rows or min(self.rows) < 1:
            raise InvalidInput("A forward pass reads at least one sequence.", field="rows")


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Random tokens, read up to the last block, as a training or a scan of its last site would."""
    import torch

    from jobs.ml.determinism import set_up
    from jobs.ml.language_model import context_length, load_model
    from jobs.ml.meter import Meter
    from jobs.ml.sites import list_sites, text_config

    ctx.stage("load")
    device, meter = set_up(params.seed), Meter()
    model = load_model(params.model_folder, device, params.dtype)
    ctx.check()
    longest = context_length(text_config(model)) or 512
    length = min(params.context_length or 512, longest)
    site = [site for site in list_sites(model) if site.residual][-1]
    ctx.stage("run", total=len(params.rows))
    per_token = 0.0
    for rows in sorted(params.rows):
        if per_token * rows * length > LONGEST_PASS:
            ctx.log(f"{rows} rows are left out: a pass would take {per_token * rows * length:.0f} s")
            continue
        ids = torch.randint(text_config(model).vocab_size, (rows, length), device=model.device)
        try:
            passes, took, finite = timed(model, site, ids, params.seconds, ctx)
        except torch.OutOfMemoryError:
            if not meter.runs:
                raise
            ctx.log(f"{rows} rows do not fit into memory")
            break
        meter.run(rows, length, passes * rows * length, took, finite=finite)
        per_token = took / (passes * rows * length)
        ctx.advance()
    return {"measured": meter.report(model)}


def timed(
    model: "PreTrainedModel", site: "Site", ids: "Tensor", at_least: float, ctx: Context
) -> tuple[int, float, bool]:
    """Passes, their seconds, and whether every number was finite. The first pass, which warms up, does not count."""
    import torch

    from jobs.ml.calibration import seconds
    from jobs.ml.sites import capture

    finite = bool(torch.isfinite(capture(model, site, ids)).all())  # waits for the device too
    passes, took = 0, 0.0
    while passes == 0 or took < at_least:
        took += seconds(model, site, ids)
        passes += 1
        ctx.check()
    return passes, took, finite
