"""What a person may name: the source of a model or dataset, which is a path on this machine or an id of the hub, and a
precision."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.ml.config import AUTO, PRECISIONS, UNSETTLED_ROWS
from jobs.ml.hub_names import is_hub_id


def is_path(source: str) -> bool:
    return source.startswith(("/", ".", "~"))


def check_source(source: str, revision: str, folder: str, kind: str) -> None:
    """Raises InvalidInput for what can be neither a path nor an id of the hub."""
    if is_path(source) and not Path(source).is_absolute():
        raise InvalidInput(f"{source} is not an absolute path.", "Start it with /.", "source")
    if is_path(source) and revision:
        raise InvalidInput("A folder on this machine has no revisions.", "Leave the revision empty.", "revision")
    if not is_path(source) and not is_hub_id(source):
        hint = f"An id is owner/{kind}, such as openai-community/gpt2; a path starts with /."
        raise InvalidInput(f"“{source[:200]}” is neither a path nor an id of the hub.", hint, "source")
    if not Path(folder).is_absolute():
        raise InvalidInput("The folder to write to must be absolute.", field="folder")


def check_absolute(params: Any, *fields: str) -> None:
    """Raises InvalidInput by the first of these folders that is none."""
    for field in fields:
        if not Path(getattr(params, field)).is_absolute():
            raise InvalidInput(f"{field} must be an absolute path.", field=field)


def keep_to_limit(ctx: Context) -> None:
    from jobs.ml.disk import size
    from jobs.ml.pace import keep_pace

    if pace := keep_pace():
        ctx.log(f"downloads on this machine share {size(pace.rate)} a second")


def check_precision(dtype: str, known: tuple[str, ...] = PRECISIONS) -> None:
    if dtype not in known:
        raise InvalidInput(f"There is no precision {dtype}.", f"There are: {', '.join(known)}.", "dtype")


def check_reading(params: Any, *folders: str) -> None:
    """Of a kind that reads tokens with a model: `model_batch`, `dtype` and the folders."""
    if params.model_batch is not None and params.model_batch < 1:
        raise InvalidInput("A forward pass reads at least one sequence.", field="model_batch")
    check_precision(params.dtype, (AUTO, *PRECISIONS))
    check_absolute(params, *folders)


def fewer_rows(params: Any, settled: dict[str, Any]) -> Any:
    """The same with half as many sequences in a forward pass, for want of memory; None where there is one alone.
    settled: what an earlier attempt took where that was left open."""
    rows = params.model_batch or settled.get("model_batch", UNSETTLED_ROWS)
    return replace(params, model_batch=rows // 2) if rows > 1 else None


def counter(ctx: Context) -> Callable[[int], None]:
    """Counts what is done in the current stage. The first may be of earlier attempts: no speed."""
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        ctx.reach(done)

    return advance
