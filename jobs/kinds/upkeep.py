"""One task of upkeep, or a look at what it would do."""

import contextlib
from dataclasses import dataclass
from typing import Any

from jobs.context import Context

LABEL = "Upkeep"
QUEUE = "cpu"
RESUMABLE = False
STAGES = {"look": 20.0, "work": 80.0}


@dataclass(frozen=True)
class Params:
    task: str  # one of the setting UPKEEP
    dry_run: bool = False  # count what there is to do, and change nothing

    def __post_init__(self) -> None:
        from jobs.upkeep.task import find

        find(self.task)


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """What it found and did: see jobs.upkeep.task.Report. Killed on its way, it leaves the rest to the next run."""
    from jobs.upkeep.task import carry_out, find

    let_others_read_first()
    report = carry_out(find(params.task).steps(ctx), ctx, dry_run=params.dry_run)
    for line in (*report.details, *(f"kept {line}" for line in report.kept), *report.wrong, report.summary()):
        ctx.log(line)
    return report.result()


def let_others_read_first() -> None:
    import psutil

    with contextlib.suppress(OSError, AttributeError, psutil.Error):  # not every system can
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
