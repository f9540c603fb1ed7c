"""All that is measured of an SAE at once, part by part: a part that is there is not measured again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from jobs.ml import store
from jobs.ml.absorption import absorption
from jobs.ml.evaluate import measure
from jobs.ml.labelled import Labelled
from jobs.ml.place import find_place
from jobs.ml.pooled import LENGTH, pool
from jobs.ml.probing import scr, sparse_probing, tpp
from jobs.ml.sae import Sae
from jobs.ml.tokenizer import load_tokenizer
from jobs.ml.tokens import TokenShards

Progress = Callable[[int, int], None]
NO_LABELS = "no labelled dataset was chosen"
NO_SECOND = "no column with second labels was chosen"


@dataclass
class Evaluation:
    """Each part returns {figures, not_measured, ...} and is kept as a file of its own in the folder."""

    model: PreTrainedModel
    sae: Sae
    shards: TokenShards
    folder: Path
    reads: Sequence[str]
    writes: Sequence[str] = ()
    model_batch: int = 8
    seed: int = 0
    found: dict[str, Any] = field(default_factory=lambda: {"figures": {}, "not_measured": {}})

    def part(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """What an earlier attempt measured, or what this one does."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            store.write_json(path, work())
        one = store.read_json(path)
        for joined in ("figures", "not_measured"):
            self.found[joined] |= one.pop(joined)
        self.found |= one

    def reconstruction(self, tokens: int, skip_special: bool, on_progress: Progress) -> dict[str, Any]:
        return measure(
            self.model, self.sae, self.reads, self.shards, writes=self.writes, tokens=tokens,
            ce_tokens=max(1, tokens // 4), skip_special=skip_special, model_batch=self.model_batch, seed=self.seed,
            on_progress=on_progress,
        )  # fmt: skip

    def labels(
        self, model_folder: Path | str, texts: Sequence[Labelled], seconds: bool, on_progress: Progress
    ) -> dict[str, Any]:
        """Sparse probing, TPP and, where there are second labels, SCR."""
        tokenizer, bos = load_tokenizer(model_folder), self.shards.bos
        place = find_place(self.model, self.sae, self.reads, self.writes)
        pooled = pool(
            self.model, self.sae, place, tokenizer, texts, bos=bos, length=min(LENGTH, self.shards.context_length),
            model_batch=self.model_batch, on_progress=on_progress,
        )  # fmt: skip
        figures, classes = sparse_probing(pooled)
        figures |= tpp(self.sae, pooled)
        spurious, why = scr(self.sae, pooled) if seconds else ({}, NO_SECOND)
        return {
            "figures": figures | spurious,
            "classes": classes,
            "texts": {"train": int(pooled.train.sum()), "test": int((~pooled.train).sum())},
            "not_measured": {"scr": why} if why else {},
        }

    def letters(self, model_folder: Path | str, on_progress: Progress) -> dict[str, Any]:
        place = find_place(self.model, self.sae, self.reads, self.writes)
        figures, why = absorption(
            self.model, self.sae, place, load_tokenizer(model_folder), model_batch=self.model_batch,
            on_progress=on_progress,
        )  # fmt: skip
        return {"figures": figures, "not_measured": {"absorption": why} if why else {}}
