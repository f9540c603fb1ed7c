"""What a tokenization would make of a few documents: `python -m jobs.ml.preview` reads a request as JSON from standard
input and writes the answer as JSON.

It runs the code of the job in a process of its own: a web process loads no tokenizer, a template or a text that takes
too long ends here, and PyTorch, which tokenizers do without, is kept out because it takes seconds to load.
"""

import json
import resource
import sys
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np

from jobs.ml import conversations
from jobs.ml.documents import check_unchanged, holds_conversations, read_column
from jobs.ml.encode import encode
from jobs.ml.errors import WithHint
from jobs.ml.packing import frame_of, is_held_out
from jobs.ml.pieces import pieces
from jobs.ml.prepare import Preparation
from jobs.ml.rows import Layout, Rows
from jobs.ml.token_config import TokenConfig
from jobs.ml.tokens import SPLITS
from jobs.ml.vocabulary import vocabulary

DOCUMENTS, CHARACTERS, SHOWN = 4, 2000, 2000  # documents, characters of each, tokens shown in all
SECONDS, BYTES = 20, 4 * 2**30  # of processor time and of memory


def preview(
    tokenizer: Any,
    config: TokenConfig,
    dataset_folder: str,
    text: str = "",
    model_context: int | None = None,
    embeddings: int | None = None,
) -> dict[str, Any]:
    """The first documents of a dataset, or a text instead of them. Raises WithHint where the job would refuse."""
    frame = frame_of(tokenizer, config, model_context, embeddings)
    if not text:
        check_unchanged(dataset_folder)
    prepare = Preparation(config, tokenizer, not text and holds_conversations(dataset_folder))
    layout = Layout(frame, config)
    found = [text] if text else islice(read_column(dataset_folder, prepare.column), DOCUMENTS)
    documents: list[dict[str, Any]] = []
    streams: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for number, document in enumerate(prepare.all(map(beginning, found))):
        cut = list(pieces([document], number, 0))
        words = np.concatenate(encode(tokenizer, cut))
        split = SPLITS[not text and is_held_out(config.seed, number, config.held_out)]
        streams[split] += layout.arrange(words, True, not len(words))
        documents.append({
            "number": number,
            "split": split,
            "characters": len(document.text),
            "tokens": len(words),
            "removed": document.removed,
            "dropped": document.dropped,
        })  # fmt: skip
    readable = vocabulary(tokenizer)
    rows = [row for split in SPLITS for row in rows_of(streams[split], layout, split, readable)]
    left_out = sum(len(row["tokens"]) for row in rows) - SHOWN
    return {"documents": documents, "rows": limited(rows), "left_out": max(0, left_out), "note": prepare.note}


def beginning(document: Any) -> Any:
    """At most CHARACTERS of a text, or of the messages of a conversation together."""
    if isinstance(document, str):
        return document[:CHARACTERS]
    return conversations.beginning(document, CHARACTERS)


def rows_of(stream: list[np.ndarray], layout: Layout, split: str, readable: list[str]) -> list[dict[str, Any]]:
    words = np.concatenate([np.empty(0, dtype=np.uint32), *stream])
    whole = len(words) // layout.payload * layout.payload
    rows = shown(layout.rows(words[:whole]), split, readable) if whole else []
    if whole < len(words):  # a packed row that goes on with the next document
        [begun] = shown(layout.unfinished(words[whole:]), split, readable)
        rows.append({**begun, "padding": 0, "unfinished": True})
    return rows


def shown(rows: Rows, split: str, readable: list[str]) -> list[dict[str, Any]]:
    """Each row with its tokens as [text, id, kind]; kind is "", "special" or "masked"."""
    kinds = np.select([rows.masked, rows.special], ["masked", "special"], "")
    return [
        {
            "split": split,
            "tokens": [[readable[n], n, how] for n, how in zip(ids[:length], kind[:length], strict=True)],
            "padding": len(ids) - length,
            "unfinished": False,
        }
        for ids, kind, length in zip(rows.ids.tolist(), kinds.tolist(), rows.lengths.tolist(), strict=True)
    ]


def limited(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    room, kept = SHOWN, []
    for row in rows:
        if room <= 0:
            break
        kept.append({**row, "tokens": row["tokens"][:room]})
        room -= len(row["tokens"])
    return kept


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    sys.modules["torch"] = None  # type: ignore[assignment]  # not to be imported
    from jobs.ml.tokenizer import load_tokenizer

    request = json.load(sys.stdin)
    try:
        tokenizer = load_tokenizer(request.pop("model_folder"))
        answer = preview(tokenizer, TokenConfig(**request.pop("config")), **request)
    except (WithHint, OSError) as error:
        answer = {"refused": str(error), "hint": getattr(error, "hint", ""), "field": getattr(error, "field", "")}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
