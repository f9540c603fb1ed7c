"""Activations of any number of sites, kept on disk (the files are listed in cache_layout.py).

Each shard holds the tokens of the same number of sequences and depends on nothing but them: killed at any moment the
work goes on with the first shard that is missing, a damaged shard is computed again alone, and the bytes are the same.
"""

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from jobs.ml import store
from jobs.ml.activation_sums import SiteSums, Sums, describe, together
from jobs.ml.activations import NonFiniteActivations
from jobs.ml.cache_layout import cache_bytes, rows_per_shard, shard_file, site_file
from jobs.ml.disk import require_space
from jobs.ml.errors import WithHint
from jobs.ml.sequences import alike, covering
from jobs.ml.sites import Site, capture_all, resolve
from jobs.ml.tokens import TokenShards

PLAN = "plan.json"
FLOAT16_LARGEST = 65504.0
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "int8": torch.int8}


class BeyondFloat16(WithHint):
    pass


class InUseElsewhere(WithHint):
    pass


def write_cache(
    load: Callable[[], PreTrainedModel],
    sites: list[str],
    shards: TokenShards,
    folder: Path | str,
    *,
    tokens: int,
    dtype: str = "float32",
    stored: str = "bfloat16",
    skip_special: bool = True,
    model_batch: int = 8,
    model_identity: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_verify: Callable[[float], None] = lambda share: None,
    on_damage: Callable[[list[str]], None] = lambda names: None,
) -> tuple[dict[str, Any], int, float]:
    """Makes the folder the cache that is described. Returns its manifest, and how many tokens were read for it now in
    how many seconds: none where it was there already.

    A finished one is read and compared with its checksums; the model is loaded only where a shard is missing or
    damaged. About `tokens` tokens are read: whole sequences from the beginning of the split.
    on_progress(tokens, of) is called after every forward pass, on_verify(share) between files; both may raise: finished
    shards are kept. on_damage(names) is told which files are missing or changed.
    Raises UnknownSite, NonFiniteActivations, BeyondFloat16, InUseElsewhere, DiskFull, ValueError.
    """
    folder = Path(folder)
    plan = {
        "sites": sites,
        "model": model_identity,
        "dtype": dtype,  # the precision of the language model that `load` gives
        "tokens": store.fingerprint(store.read_manifest(shards.folder)),
        "split": shards.split,
        "sequences": covering(shards, tokens),
        "stored": stored,
        "skip_special": skip_special,
        "model_batch": model_batch,
    }
    with alone_in(folder):
        plan = take_up(folder, plan)
        if finished := verified(folder, plan, on_verify, on_damage):
            return finished, 0, 0.0
        model = load()
        return Writing(folder, plan, model, [resolve(model, site) for site in sites], shards, on_progress).finish()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """The kernel lets go of the lock however this process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            raise InUseElsewhere(f"another process writes to {folder}.", "Wait until it has ended.") from taken
        yield


def take_up(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """What is there is gone on with where it was made to the same plan, or to one with smaller passes, which is kept;
    else it is removed."""
    store.remove_torn(folder)
    there = plan_of(folder)
    if there | {"model_batch": plan["model_batch"]} == plan and there["model_batch"] <= plan["model_batch"]:
        return there
    for old in folder.iterdir():
        if old.name != ".lock":
            store.remove(old)
    store.write_json(folder / PLAN, plan)
    return plan


def plan_of(folder: Path) -> dict[str, Any]:
    """What the cache in the folder holds and how it is made, be it finished or not; empty where there is none."""
    return store.read_json_if_there(folder / PLAN)


def verified(
    folder: Path, plan: dict[str, Any], on_verify: Callable[[float], None], on_damage: Callable[[list[str]], None]
) -> dict[str, Any] | None:
    """The manifest where every file is as it says; otherwise the damaged shards are removed, and the manifest too."""
    manifest = store.read_manifest(folder)
    if manifest is None or manifest["plan"] != plan:
        return None
    damaged = []
    for number, (name, expected) in enumerate(manifest["files"].items()):
        on_verify(number / len(manifest["files"]))
        path = folder / name
        if not path.is_file() or store.described(path) != expected:
            damaged.append(name)
    if not damaged:
        return manifest
    on_damage(damaged)
    (folder / "manifest.json").unlink()
    for name in damaged:
        store.remove(folder / shard_file(int(name.removesuffix(".safetensors").rpartition("-")[2])))
    return None


@dataclass(frozen=True)
class Writing:
    folder: Path
    plan: dict[str, Any]
    model: PreTrainedModel
    sites: list[Site]
    shards: TokenShards
    on_progress: Callable[[int, int], None]

    @property
    def rows(self) -> int:
        """Sequences of a shard."""
        widths = [site.width for site in self.sites]
        return rows_per_shard(widths, self.plan["stored"], self.shards.context_length, self.plan["model_batch"])

    def finish(self) -> tuple[dict[str, Any], int, float]:
        """Writes the shards that are missing, then the manifest."""
        kept = self.shards.kept_per_sequence(self.plan["skip_special"])[: self.plan["sequences"]]
        if not kept.sum():
            raise WithHint("there are only special tokens in these sequences.", "Keep the special tokens too.")
        starts = range(0, len(kept), self.rows)
        counts = np.add.reduceat(kept, starts).tolist()
        missing = [number for number in range(len(starts)) if not self.is_whole(number)]
        widths = [site.width for site in self.sites]
        needed = cache_bytes(widths, self.plan["stored"], sum(counts[number] for number in missing))
        require_space(
            self.folder, needed, "What is missing of the cache" if len(missing) < len(starts) else "The cache"
        )
        read = np.add.reduceat(self.shards.lengths(range(len(kept))), starts)
        done, total = int(np.delete(read, missing).sum()), int(read.sum())
        began = time.monotonic()
        for number in missing:
            self.write_shard(number, counts[number], partial(self.on_read, done, total))
            done += int(read[number])
        seconds = time.monotonic() - began
        return self.write_manifest(counts), int(read[missing].sum()), seconds

    def on_read(self, before: int, total: int, tokens: int) -> None:
        self.on_progress(before + tokens, total)

    def is_whole(self, number: int) -> bool:
        files = self.files_of(number)
        sizes = {name: path.stat().st_size for name in files if (path := self.folder / name).is_file()}
        return bool(files) and all(sizes.get(name) == file["bytes"] for name, file in files.items())

    def files_of(self, number: int) -> dict[str, dict[str, Any]]:
        """Of the sites: name → bytes and sha256, as they were when the shard was written."""
        path = self.folder / shard_file(number)
        if not path.is_file():
            return {}
        with safe_open(path, framework="np") as file:
            files: dict[str, dict[str, Any]] = json.loads(file.metadata()["files"])
            return files

    def write_shard(self, number: int, tokens: int, on_progress: Callable[[int], None]) -> None:
        """tokens: how many it will hold. on_progress(tokens) is told how many of its own were read."""
        positions = np.empty(tokens, dtype=np.uint64)
        parts = [Part(site, self.plan["stored"], tokens, self.model.device) for site in self.sites]
        done, tokens_read, first_row = 0, 0, number * self.rows
        last_row = min(self.plan["sequences"], first_row + self.rows)
        size, skip = self.plan["model_batch"], self.plan["skip_special"]
        for read in alike(self.shards, first_row, last_row, size, skip):
            read = read.to(self.model.device)
            found = capture_all(self.model, self.sites, read.ids, read.attention)
            places = read.positions(self.shards.context_length).cpu().numpy()
            positions[done : done + len(places)] = places
            for part in parts:
                part.add(read.counted(found[part.site.name]), read.first)
            done += len(places)
            tokens_read += read.tokens
            on_progress(tokens_read)
        files, sums = {}, {"positions": positions}
        for n, part in enumerate(parts):
            path = self.folder / site_file(n, part.site.name, number)
            files[path.name] = part.write(path)
            sums |= {f"{n}.{name}": array for name, array in part.sums.arrays(positions).items()}
        store.write_tensors(self.folder / shard_file(number), sums, {"files": json.dumps(files)})

    def write_manifest(self, counts: list[int]) -> dict[str, Any]:
        files: dict[str, dict[str, Any]] = {}
        sums: list[Sums | None] = [None] * len(self.sites)
        for number in range(len(counts)):
            shard = self.folder / shard_file(number)
            files |= {**self.files_of(number), shard.name: store.described(shard)}
            arrays = store.read_tensors(shard)
            for n, before in enumerate(sums):
                own = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{n}.")}
                sums[n] = together(before, own)
        return store.write_manifest(
            self.folder,
            files,
            kind="activations",
            plan=self.plan,
            sites=[asdict(site) for site in self.sites],
            context_length=self.shards.context_length,
            tokens=sum(counts),
            shards=counts,
            statistics={
                site.name: describe(own) for site, own in zip(self.sites, sums, strict=True) if own is not None
            },
        )


class Part:
    """One site's activations of a shard, in the type they are stored in."""

    def __init__(self, site: Site, stored: str, tokens: int, device: torch.device) -> None:
        self.site, self.stored, self.done = site, stored, 0
        self.tensors = {"activations": torch.empty(tokens, site.width, dtype=TYPES[stored])}
        if stored == "int8":
            self.tensors["scale"] = torch.empty(tokens, dtype=torch.float32)
        self.sums = SiteSums(site.width, device)

    def add(self, x: Tensor, sequence: int) -> None:
        """x [n, D]; `sequence`: the first of those that were read together"""
        x = x.float()
        largest = float(x.abs().amax()) if x.numel() else 0.0
        if not np.isfinite(largest):
            raise NonFiniteActivations(
                f"{self.site.name} gave activations that are not finite numbers, near sequence {sequence:,}.",
                "In float16 large models overflow: use bfloat16 or float32.",
            )
        if self.stored == "float16" and largest > FLOAT16_LARGEST:
            raise BeyondFloat16(
                f"{self.site.name} has a value of {largest:,.0f} near sequence {sequence:,}: float16 ends at 65,504.",
                "Store this site as bfloat16 or float32.",
            )
        coded = encode(x, self.stored)
        for name, tensor in coded.items():
            self.tensors[name][self.done : self.done + len(x)] = tensor.cpu()
        self.sums.add(x, decode(**coded))
        self.done += len(x)

    def write(self, path: Path) -> dict[str, Any]:
        """Size and checksum of what was written."""
        with store.replacing(path) as temporary:
            save_file(self.tensors, temporary)
            return store.described(temporary)


def encode(x: Tensor, stored: str) -> dict[str, Tensor]:
    """x float32 [n, D]. In int8 an entry is off by at most 1/254 of the largest entry of its token."""
    if stored != "int8":
        return {"activations": x.to(TYPES[stored])}
    scale = x.abs().amax(1) / 127
    return {"activations": (x / scale.clamp_min(1e-30)[:, None]).round().to(torch.int8), "scale": scale}


def decode(activations: Tensor, scale: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """float32 [n, D]"""
    x = torch.empty(activations.shape, device=activations.device) if out is None else out
    x.copy_(activations)
    return x if scale is None else x.mul_(scale[:, None])
