"""Adds datasets of the hub in a process of its own: its libraries take HF_ENDPOINT when they are first imported.

Reads a JSON list of {"params", "stop_after" (shards, optional)} from its input and prints what came of each.
"""

import json
import sys
from typing import Any

from jobs.context import Context
from jobs.errors import InvalidInput, Stopped, classify
from jobs.kinds import add_dataset
from jobs.kinds import documents as steps
from jobs.ml import documents, hub


class UntilShard(Context):
    """The worker shuts down when so many shards are whole."""

    def __init__(self, folder: str, shards: int) -> None:
        super().__init__(stages=add_dataset.STAGES)
        self.folder, self.shards = folder, shards

    def check(self) -> None:
        if len(documents.shards(self.folder)) >= self.shards:
            self.wished = "stop"
        super().check()


def outcome(params: dict[str, Any], stop_after: int = 0) -> dict[str, Any]:
    ctx = UntilShard(params["folder"], stop_after) if stop_after else Context(stages=add_dataset.STAGES)
    try:
        return {"result": add_dataset.run(add_dataset.Params(**params), ctx), "total": ctx.snapshot.total}
    except Stopped:
        return {"stopped": len(documents.shards(params["folder"]))}
    except Exception as error:
        failure = classify(error)
        field = error.field if isinstance(error, InvalidInput) else ""
        return {"code": failure.code, "message": failure.message, "hint": failure.hint, "field": field}


if __name__ == "__main__":
    import datasets

    datasets.config.STREAMING_READ_RETRY_INTERVAL = 0.01
    hub.FIRST_WAIT = 0.01
    documents.SHARD_CHARACTERS, documents.GROUP_CHARACTERS = 3000, 1000
    steps.CHECKED_EVERY = 1
    sys.stdout = sys.stderr
    outcomes = [outcome(**task) for task in json.load(sys.stdin)]
    json.dump(outcomes, sys.__stdout__)
