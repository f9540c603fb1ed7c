"""Activations read from caches, shuffled, in the place of an ActivationStream: any step can be read directly.

The order of a cache: its shards are permuted by (seed, epoch); a window of some of them, of `WINDOW_BYTES` at most, is
cut to batches by a permutation of its tokens, by (seed, epoch, window). A batch is a set: within it tokens stand as
they do on the disk, so that reading walks forward. Files are mapped, and the kernel is asked for the next window in
time.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from jobs.ml import store
from jobs.ml.activation_cache import decode
from jobs.ml.activations import generator
from jobs.ml.cache_layout import site_file, token_bytes
from jobs.ml.errors import WithHint
from jobs.ml.sites import Site
from jobs.ml.tokens import TokenShards

WINDOW_BYTES, WINDOW_SHARDS = 2**30, 16
SAMPLE_TOKENS = 2**16
ASKED_BYTES = 2**17  # the kernel reads no more ahead for one call


class CacheMissing(WithHint):
    pass


class CacheDoesNotFit(WithHint):
    pass


class CacheReader:
    """Some sites of one cache: batch `step` is the tokens [step * batch_tokens, …) of an order that has no end."""

    def __init__(
        self,
        folder: Path | str,
        sites: Sequence[str],
        batch_tokens: int,
        seed: int,
        manifest: dict[str, Any] | None = None,
    ) -> None:
        """manifest: that of the folder, where it was read already. Raises CacheMissing, CacheDoesNotFit."""
        self.folder, self.batch_tokens, self.seed = Path(folder), batch_tokens, seed
        self.manifest = manifest or read_manifest(self.folder)
        names = [entry["name"] for entry in self.manifest["sites"]]
        if missing := [site for site in sites if site not in names]:
            raise CacheDoesNotFit(f"the cache at {folder} holds {', '.join(names)}, but not {', '.join(missing)}.")
        self.numbers = {site: names.index(site) for site in sites}
        self.sites = {site: Site(**self.manifest["sites"][number]) for site, number in self.numbers.items()}
        self.tokens = np.array(self.manifest["shards"], dtype=np.int64)
        self.tokens_per_epoch = int(self.tokens.sum())
        widest = max(site.width for site in self.sites.values())
        size = token_bytes(widest, self.manifest["plan"]["stored"]) * int(self.tokens.max())
        self.window_shards = max(1, min(WINDOW_SHARDS, WINDOW_BYTES // size))
        self._epoch: tuple[int, np.ndarray, np.ndarray] = (-1, self.tokens, self.tokens)
        self._window: tuple[int, int] | None = None
        self._order = self._shards = self.tokens
        self._open: dict[tuple[str, int], dict[str, Tensor]] = {}

    def read(self, step: int, out: Mapping[str, Tensor]) -> None:
        """The batch into `out`, by site float32 [batch_tokens, D]."""
        start, end = step * self.batch_tokens, (step + 1) * self.batch_tokens
        while start < end:
            epoch, offset = divmod(start, self.tokens_per_epoch)
            ends = self.windows(epoch)[1]
            window = int(np.searchsorted(ends, offset, side="right"))
            first = int(ends[window - 1]) if window else 0
            stop = min(offset + end - start, int(ends[window]))
            self.open(epoch, window)
            done, n = self.batch_tokens - (end - start), stop - offset
            places = np.sort(self._order[offset - first : stop - first])
            for site, room in out.items():
                self.gather(site, places, room[done : done + n])
            start += n

    def windows(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order of shards, and the tokens up to the end of each of its windows."""
        if self._epoch[0] != epoch:
            shards = generator(self.seed, epoch).permutation(len(self.tokens))
            starts = np.arange(0, len(shards), self.window_shards)
            self._epoch = epoch, shards, np.add.reduceat(self.tokens[shards], starts).cumsum()
        return self._epoch[1:]

    def open(self, epoch: int, window: int) -> None:
        if self._window == (epoch, window):
            return
        order, size = self.windows(epoch)[0], self.window_shards
        self._shards = order[window * size : (window + 1) * size]
        for shard in order[window * size : (window + 2) * size].tolist():
            for site in self.sites:
                ask_for(self.path(site, shard))
        wanted = [(site, shard) for site in self.sites for shard in self._shards.tolist()]
        self._open = {place: self._open.get(place) or mapped(self.path(*place)) for place in wanted}
        self._order = generator(self.seed, epoch, window).permutation(int(self.tokens[self._shards].sum()))
        self._window = epoch, window

    def gather(self, site: str, places: np.ndarray, out: Tensor) -> Tensor:
        """Tokens by their ascending places in the open window into `out`, float32 [n, D]."""
        ends = self.tokens[self._shards].cumsum()
        cuts = np.searchsorted(places, ends).tolist()
        for shard, begin, cut, start in zip(self._shards.tolist(), [0, *cuts], cuts, [0, *ends.tolist()], strict=False):
            rows = torch.from_numpy(places[begin:cut] - start)
            taken = {name: tensor.index_select(0, rows) for name, tensor in self._open[site, shard].items()}
            decode(**taken, out=out[begin:cut])
        return out

    def path(self, site: str, shard: int) -> Path:
        return self.folder / site_file(self.numbers[site], site, shard)


class CachedActivations:
    """The interface of an ActivationStream. Of several caches, every batch has its share of each, by weight.

    The language model is loaded when it is asked for: to evaluate, not to train.
    """

    def __init__(
        self,
        folders: Sequence[Path | str],
        sites: str | Sequence[str],
        shards: TokenShards,
        load: Callable[[str], PreTrainedModel],
        *,
        weights: Sequence[float] = (),
        batch_tokens: int = 4096,
        seed: int = 0,
        model_batch: int = 8,
        device: str = "cpu",
    ) -> None:
        """weights: empty is by number of tokens. Raises CacheMissing, CacheDoesNotFit."""
        self.shards, self.load, self.model_batch, self.device = shards, load, model_batch, device
        self.batch_tokens = batch_tokens
        manifests = [read_manifest(Path(folder)) for folder in folders]
        sizes = weights or [sum(manifest["shards"]) for manifest in manifests]
        self.parts = portions(sizes, batch_tokens, len(folders))
        names = [sites] if isinstance(sites, str) else list(sites)
        self.readers = [
            CacheReader(folder, names, part, (seed if n == 0 else seed + 2**32 * n), manifest)
            for n, (folder, part, manifest) in enumerate(zip(folders, self.parts, manifests, strict=True))
        ]
        first = self.readers[0]
        for other in self.readers[1:]:
            check_alike(first, other)
        self.sites: dict[str, Site] = first.sites
        self.skip_special: bool = first.manifest["plan"]["skip_special"]
        self.tokens_per_epoch = sum(reader.tokens_per_epoch for reader in self.readers)
        self._step: int | None = None
        rooms = [{name: torch.empty(batch_tokens, site.width) for name, site in self.sites.items()} for _ in range(2)]
        self._batch, self._room = rooms  # the one that is read, and the one that comes

    @property
    def dtype(self) -> str:
        """The precision in which the language model computed them."""
        dtype: str = self.readers[0].manifest["plan"]["dtype"]
        return dtype

    @cached_property
    def model(self) -> PreTrainedModel:
        return self.load(self.dtype)

    def identity(self) -> dict[str, Any]:
        """What decides which activations come in which order."""
        caches = [
            {
                "files": store.fingerprint([reader.manifest["plan"], reader.manifest["files"]]),
                "tokens_per_batch": reader.batch_tokens,
                "window_shards": reader.window_shards,
                "seed": reader.seed,
            }
            for reader in self.readers
        ]
        return {"caches": caches, "sites": list(self.sites)}

    def batch(self, step: int) -> dict[str, Tensor]:
        """By site: activations [batch_tokens, width] of the same tokens, float32; on a CPU they last until the
        batch after the next is prepared."""
        for _ in self.prepare(step):
            pass
        return {name: room.to(self.device) for name, room in self._batch.items()}

    def prepare(self, step: int) -> Iterator[None]:
        """Reads what batch(step) needs; stops for the caller to listen after each cache."""
        if self._step == step:
            return
        self._step, done = None, 0
        for reader in self.readers:
            reader.read(step, {name: room[done : done + reader.batch_tokens] for name, room in self._room.items()})
            done += reader.batch_tokens
            yield
        self._batch, self._room = self._room, self._batch
        self._step = step

    def at_hand(self, step: int) -> bool:
        return False

    def ahead(self, steps: int) -> Iterator[None]:
        """Nothing: one batch is read as fast as another, since the kernel reads ahead."""
        yield from ()

    def sample(self) -> dict[str, Tensor]:
        """Up to SAMPLE_TOKENS of the open windows, by site [tokens, width], without using them up."""
        share = SAMPLE_TOKENS / self.batch_tokens
        places = [np.sort(reader._order[: max(1, round(share * reader.batch_tokens))]) for reader in self.readers]
        return {
            name: torch.cat(
                [
                    reader.gather(name, wanted, torch.empty(len(wanted), site.width))
                    for reader, wanted in zip(self.readers, places, strict=True)
                ]
            ).to(self.device)
            for name, site in self.sites.items()
        }


def read_manifest(folder: Path) -> dict[str, Any]:
    manifest = store.read_manifest(folder)
    if manifest is None:
        raise CacheMissing(
            f"there is no finished activation cache at {folder}: it was evicted, deleted, or is being made.",
            "Open the cache and make it again, then try again; or train without it.",
        )
    return manifest


def portions(weights: Sequence[float], batch_tokens: int, n: int) -> list[int]:
    """Whole tokens of a batch by weight, the largest remainders rounded up. Raises CacheDoesNotFit."""
    if len(weights) != n or not all(weight > 0 for weight in weights):
        raise CacheDoesNotFit(f"{n} caches need {n} weights above 0, not {list(weights)}.")
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * batch_tokens
    whole = np.floor(exact).astype(np.int64)
    short = batch_tokens - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:short]] += 1
    if not whole.all():
        raise CacheDoesNotFit(
            f"with these weights a batch of {batch_tokens:,} has no token of one cache.",
            "Use larger batches, or weights that are less far apart.",
        )
    return whole.tolist()


def check_alike(one: CacheReader, other: CacheReader) -> None:
    for what, a, b in (
        ("sites", one.sites, other.sites),
        ("language models", one.manifest["plan"]["model"], other.manifest["plan"]["model"]),
        ("precisions of the language model", one.manifest["plan"]["dtype"], other.manifest["plan"]["dtype"]),
        ("choices of special tokens", one.manifest["plan"]["skip_special"], other.manifest["plan"]["skip_special"]),
    ):
        if a != b:
            raise CacheDoesNotFit(f"{one.folder} and {other.folder} are of different {what}: {a} and {b}.")


def mapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard, on the disk."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except FileNotFoundError as gone:
        raise CacheMissing(
            f"{path} is gone: the cache was evicted or deleted.",
            "Open the cache and make it again, then try again: the training goes on from its checkpoint.",
        ) from gone


def ask_for(path: Path) -> None:
    """Tell the kernel that the file will be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return  # mapped() says so when it is needed
    try:
        for start in range(0, os.fstat(descriptor).st_size, ASKED_BYTES):
            os.posix_fadvise(descriptor, start, ASKED_BYTES, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)
