"""One pass over held-out tokens that collects the evidence for every feature (the files are listed in
evidence.py).

The pass leaves one file per chunk of sequences, each whole or absent, and merges them at the end: killed at
any moment it goes on with the first chunk that is missing, and ends with the same bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from jobs.ml import store
from jobs.ml.columns import merge, write_chunk
from jobs.ml.directions import logits, neighbours
from jobs.ml.evidence import PLAN, plan_of
from jobs.ml.feature_statistics import write_statistics
from jobs.ml.language_model import precision_of
from jobs.ml.place import Place, find_place
from jobs.ml.reconstruction import DENSE
from jobs.ml.sae import Sae
from jobs.ml.sequences import alike, covering
from jobs.ml.tokens import TokenShards

CHUNK_TOKENS = 2**15


def scan(
    model: PreTrainedModel,
    sae: Sae,
    reads: str | Sequence[str],
    shards: TokenShards,
    folder: Path | str,
    *,
    writes: Sequence[str] = (),
    tokens: int,
    sae_sha256: str = "",
    skip_special: bool = True,
    model_batch: int = 8,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_sort: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Writes the evidence on about `tokens` tokens (whole sequences) and returns the counts that its manifest
    keeps.

    reads, writes: the sites of the SAE's inputs and, where those are others, of its outputs. Of codes that may be
    negative the positive ones are kept: evidence is of what a feature fires on.
    sae_sha256: tells this SAE from others, so that a half-finished scan is not taken up with another one.
    on_progress(tokens, of) is called after every forward pass, on_sort(share) while what was read is put in order.
    Both may raise: finished chunks are kept.
    Raises ValueError where the split is empty.
    """
    folder = Path(folder)
    reading = Reading(
        model,
        sae,
        find_place(model, sae, reads, writes),
        shards,
        covering(shards, tokens),
        skip_special,
        model_batch,
        on_progress,
    )
    plan = {
        "sites": [site.name for site in (*reading.place.reads, *reading.place.writes)],
        "sae": sae_sha256,
        "tokens": store.sha256(shards.folder / "manifest.json"),
        "split": shards.split,
        "sequences": reading.rows,
        "skip_special": skip_special,
        "dtype": precision_of(model),
        "model_batch": model_batch,
        "seed": seed,
    }
    if (finished := begin(folder, plan)) is not None:
        return finished["counts"]
    chunks = reading.write_chunks(folder / "chunks")
    merge(chunks, folder, sae.width, lambda share: on_sort(0.4 * share))
    write_statistics(folder, shards.context_length, seed=seed, on_progress=lambda share: on_sort(0.4 + 0.4 * share))
    write_directions(reading, folder)
    return finish(reading, folder, plan)


def begin(folder: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest where this very scan is finished; otherwise what is left of another one is removed."""
    manifest = store.read_manifest(folder)
    if manifest and manifest["plan"] == plan:
        return manifest
    if manifest or plan_of(folder) != plan:
        store.remove(folder)
        store.write_json(folder / PLAN, plan)
    return None


@dataclass(frozen=True)
class Reading:
    """The pass over the first `rows` sequences."""

    model: PreTrainedModel
    sae: Sae
    place: Place
    shards: TokenShards
    rows: int
    skip_special: bool
    model_batch: int
    on_progress: Callable[[int, int], None]

    def write_chunks(self, folder: Path) -> list[Path]:
        """Those that are missing; returns all of them in the order of the text."""
        T = self.shards.context_length
        size = max(1, CHUNK_TOKENS // T // self.model_batch) * self.model_batch  # whole forward passes
        paths = []
        for start in range(0, self.rows, size):
            end = min(self.rows, start + size)
            path = folder / f"chunk-{start // size:06d}.safetensors"
            paths.append(path)
            if not path.is_file():
                write_chunk(path, self.sae.width, *self.codes(start, end))
            self.on_progress(self.ends[end], self.ends[-1])
        return paths

    @cached_property
    def ends(self) -> list[int]:
        """Tokens, padding left out, before each sequence and after the last."""
        return [0, *self.shards.lengths(range(self.rows)).cumsum().tolist()]

    @torch.no_grad()
    def codes(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """positions, latents and values [n] of the sequences start .. end - 1, positions ascending"""
        T, device = self.shards.context_length, self.sae.b_dec.device
        positions, latents, values, done = [], [], [], self.ends[start]
        for read in alike(self.shards, start, end, self.model_batch, self.skip_special):
            read = read.to(self.model.device)
            x = read.counted(self.place.inputs(self.model, read))
            code = self.sae.active(x.to(device, torch.float32)).positive()
            found = read.positions(T)
            positions.append(found[code.rows.to(found.device)].cpu())
            latents.append(code.latents.cpu())
            values.append(code.values.cpu())
            done += read.tokens
            self.on_progress(done, self.ends[-1])
        dtype = np.uint32 if self.rows * T <= 2**32 else np.uint64
        places = torch.cat(positions).numpy()
        order = np.argsort(places, kind="stable")
        return places[order].astype(dtype), torch.cat(latents).numpy()[order], torch.cat(values).numpy()[order]

    def tokens(self) -> int:
        """How many count."""
        return int(self.shards.kept_per_sequence(self.skip_special)[: self.rows].sum())


def write_directions(reading: Reading, folder: Path) -> None:
    ids, cosines = neighbours(reading.sae)
    arrays = {"neighbour_ids": ids.int(), "neighbour_cosines": cosines}
    for end, (tokens, values) in (logits(reading.model, reading.sae, reading.place.writes) or {}).items():
        arrays |= {f"{end}_logit_ids": tokens.int(), f"{end}_logit_values": values}
    for name, array in arrays.items():
        store.write_array(folder / f"{name}.npy", array.cpu().numpy())


def finish(reading: Reading, folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    n_fired = np.load(folder / "n_fired.npy")
    tokens = reading.tokens()
    counts = {
        "features": len(n_fired),
        "tokens": tokens,
        "sequences": reading.rows,
        "alive": int((n_fired > 0).sum()),
        "dead": int((n_fired == 0).sum()),
        "dense": int((n_fired > DENSE * tokens).sum()),
        "activations": int(n_fired.sum()),
    }
    store.write_manifest(
        folder,
        [path.name for path in folder.glob("*.npy")],
        kind="evidence",
        plan=plan,
        counts=counts,
        width=len(n_fired),
        tokens=tokens,
        sequences=reading.rows,
        context_length=reading.shards.context_length,
        split=reading.shards.split,
    )
    store.remove(folder / "chunks")
    return counts
