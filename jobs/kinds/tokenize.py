"""Turn a dataset into the token ids of one language model, packed to sequences."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds.sources import check_absolute
from jobs.ml.errors import Unusable
from jobs.ml.token_config import TokenConfig

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
    layout: str = "packed"
    stride: int | None = None
    bos: str = "present"
    separator: str = "present"
    chat: str = "auto"
    train_on: str = "all"
    junk: str = "off"

    def __post_init__(self) -> None:
        refused(self.config)
        check_absolute(self, "dataset_folder", "model_folder", "folder")

    def config(self) -> TokenConfig:
        said = asdict(self)
        return TokenConfig(**{field.name: said[field.name] for field in fields(TokenConfig)})


def run(params: Params, ctx: Context) -> dict[str, Any]:
    """Started again, it goes on after the last finished shard, to the same bytes."""
    return refused(partial(tokenize, params, ctx))


def tokenize(params: Params, ctx: Context) -> dict[str, Any]:
    from jobs.ml.documents import check_unchanged, count_documents, holds_conversations, read_column
    from jobs.ml.language_model import read_architecture
    from jobs.ml.packing import pack
    from jobs.ml.prepare import Preparation
    from jobs.ml.tokenizer import load_tokenizer
    from jobs.ml.whole import require_whole

    ctx.stage("load")
    check_unchanged(params.dataset_folder)
    require_whole(Path(params.model_folder))
    tokenizer = load_tokenizer(params.model_folder)
    model = read_architecture(params.model_folder)
    prepare = Preparation(params.config(), tokenizer, holds_conversations(params.dataset_folder))
    if prepare.note:
        ctx.log(prepare.note)
    ctx.stage("tokenize", total=count_documents(params.dataset_folder), unit="documents")
    return pack(
        partial(read_column, params.dataset_folder, prepare.column),
        tokenizer,
        params.folder,
        prepare=prepare,
        model_context=model.context_length,
        embeddings=model.vocab_size,
        on_progress=lambda documents, tokens: ctx.reach(documents),
        **asdict(params.config()),
    )


def refused(work: Callable[[], Any]) -> Any:
    """What the choices make impossible is said of the field to change."""
    try:
        return work()
    except Unusable as error:
        raise InvalidInput(str(error), error.hint, error.field) from error
