"""All that is measured of an SAE at once, part by part: a part that is there is not measured again."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from jobs.ml import store
from jobs.ml.absorption import absorption
from jobs.ml.directions import similarity
from jobs.ml.evaluate import measure
from jobs.ml.labelled import Labelled
from jobs.ml.place import find_place
from jobs.ml.pooled import LENGTH, pool
from jobs.ml.probing import class_probes, scr, sparse_probing, tpp
from jobs.ml.sae import Sae
from jobs.ml.tokenizer import load_tokenizer
from jobs.ml.tokens import TokenShards

Progress = Callable[[int, int], None]
NO_LABELS = "no labelled dataset was chosen"
NO_SECOND = "no column with second labels was chosen"


@dataclass
class Evaluation:
    """Each part returns {figures, not_measured, ...} and is kept as a file of its own in the folder. `found` adds up
    the seconds that they took, whichever attempt measured them."""

    model: PreTrainedModel
    sae: Sae
    shards: TokenShards
    folder: Path
    reads: Sequence[str]
    writes: Sequence[str] = ()
    model_batch: int = 8
    seed: int = 0
    found: dict[str, Any] = field(default_factory=lambda: {"figures": {}, "not_measured": {}, "seconds": 0.0})

    def part(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """What an earlier attempt measured, or what this one does."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            started = time.monotonic()
            store.write_json(path, {**work(), "seconds": time.monotonic() - started})
        one = store.read_json(path)
        one["seconds"] = round(self.found["seconds"] + one["seconds"], 1)
        for joined in ("figures", "not_measured"):
            self.found[joined] |= one.pop(joined)
        self.found |= one

    def reconstruction(self, tokens: int, skip_special: bool, on_progress: Progress) -> dict[str, Any]:
        found = measure(
            self.model, self.sae, self.reads, self.shards, writes=self.writes, tokens=tokens,
            ce_tokens=max(1, tokens // 4), skip_special=skip_special, model_batch=self.model_batch, seed=self.seed,
            on_progress=on_progress,
        )  # fmt: skip
        found["figures"] |= similarity(self.sae)
        return found

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
        probes = class_probes(pooled)
        figures, classes = sparse_probing(pooled, probes)
        figures |= tpp(self.sae, pooled, probes)
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
            self.model, self.sae, place, load_tokenizer(model_folder), bos=self.shards.bos,
            model_batch=self.model_batch, on_progress=on_progress,
        )  # fmt: skip
        return {"figures": figures, "not_measured": {"absorption": why} if why else {}}
