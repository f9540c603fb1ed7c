"""Turn a dataset into the token ids of one language model, packed to sequences."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs.context import Context
from jobs.errors import InvalidInput

LABEL = "Tokenize"
QUEUE = "cpu"
RESUMABLE = True
STAGES = {"load": 2.0, "tokenize": 98.0}
ON_SUCCESS = "mistudio.ingest.tokenization"


@dataclass(frozen=True)
class Params:
    dataset_folder: str
    model_folder: str
    folder: str
    context_length: int
    held_out: float = 0.1  # share of the documents
    seed: int = 0
    add_bos: bool = True

    def __post_init__(self) -> None:
        if self.context_length < 2:
            raise InvalidInput("A context has at least 2 tokens.", field="context_length")
        if not 0 <= self.held_out < 1:
            raise InvalidInput("The held-out share is from 0 to below 1.", "0.1 is usual.", "held_out")
        if not 0 <= self.seed < 2**63:
            raise InvalidInput("The seed is a whole number from 0.", field="seed")
        for field in ("dataset_folder", "model_folder", "folder"):
            if not Path(getattr(self, field)).is_absolute():
                raise InvalidInput(f"{field} must be an absolute path.", field=field)


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Started again, it goes on after the last finished shard, to the same bytes."""
    from jobs.ml.documents import count_documents, read_documents
    from jobs.ml.language_model import load_tokenizer, read_architecture
    from jobs.ml.packing import pack
    from jobs.ml.whole import require_whole

    ctx.stage("load")
    require_whole(Path(params.model_folder))
    tokenizer = load_tokenizer(params.model_folder)
    model_context = read_architecture(params.model_folder).context_length
    ctx.stage("tokenize", total=count_documents(params.dataset_folder), unit="documents")

    def on_progress(documents: int, tokens: int) -> None:
        ctx.at(documents)
        ctx.check()

    return pack(
        partial(read_documents, params.dataset_folder),
        tokenizer,
        params.folder,
        context_length=params.context_length,
        seed=params.seed,
        held_out=params.held_out,
        add_bos=params.add_bos,
        model_context=model_context,
        on_progress=on_progress,
    )
