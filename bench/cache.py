"""How fast an activation cache is read, shuffled, on one core: python -m bench.cache --help

Beside it, in the same run: the same bytes copied in order from the same mapped files, and the bytes looked up in a
random order row by row. Figures are GB/s of bytes on disk, from the page cache, by wall time and by processor time of
one thread, each the best of `--rounds`: the machine may be busy.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from bench.engine import best
from jobs.ml import store
from jobs.ml.activation_cache import encode
from jobs.ml.cache_layout import SHARD_BYTES, SHARD_TOKENS, STORED, shard_file, site_file, token_bytes
from jobs.ml.cached_activations import CacheReader, mapped

SITE = "blocks.0.hook_resid_pre"


def write(folder: Path, stored: str, width: int, size: int) -> int:
    """A cache of random numbers of about `size` bytes; returns its tokens."""
    from safetensors.torch import save_file

    per_shard = min(SHARD_TOKENS, SHARD_BYTES // token_bytes(width, stored))
    counts = [per_shard] * max(1, size // token_bytes(width, stored) // per_shard)
    folder.mkdir()
    for number, tokens in enumerate(counts):
        save_file(encode(torch.randn(tokens, width), stored), folder / site_file(0, SITE, number))
        store.write_tensors(folder / shard_file(number), {"positions": np.arange(tokens, dtype=np.uint64)})
    site = {"name": SITE, "width": width, "path": "", "side": "input"}
    store.write_manifest(folder, {}, plan={"stored": stored}, sites=[site], shards=counts)
    return sum(counts)


def bench(options: argparse.Namespace, folder: Path, stored: str, width: int) -> None:
    tokens = write(folder, stored, width, options.megabytes * 10**6)
    size = tokens * token_bytes(width, stored)
    steps = tokens // options.batch_tokens
    reader = CacheReader(folder, [SITE], options.batch_tokens, 0)
    shards = [mapped(reader.path(SITE, n))["activations"] for n in range(len(reader.tokens))]
    room = torch.empty_like(shards[0])
    places = torch.from_numpy(np.random.default_rng(0).permutation(len(shards[0])))

    batch = torch.empty(options.batch_tokens, width)

    def shuffled() -> None:
        for step in range(steps):
            reader.read(step, {SITE: batch})

    def copied() -> None:
        for shard in shards:
            room[: len(shard)].copy_(shard)

    def looked_up() -> None:
        for shard in shards:
            for part in places[: len(shard)].split(options.batch_tokens):
                shard.index_select(0, part).float()

    shuffled()  # into the page cache
    clocks = {
        "shuffled to float32": best(shuffled, options.rounds),
        "copied in order": best(copied, options.rounds),
        "rows looked up at random": best(looked_up, options.rounds),
    }
    for name, (wall, cpu) in clocks.items():
        print(f"{stored:9s} {width:5d} wide  {name:25s} {size / wall / 1e9:6.2f} {size / cpu / 1e9:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {"megabytes": 800, "batch-tokens": 4096, "rounds": 3, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--width", type=int, action="append")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as place:
        for width in options.width or (192, 768, 4096):
            for stored in STORED:
                folder = Path(place) / f"{stored}-{width}"
                bench(options, folder, stored, width)
                store.remove(folder)


if __name__ == "__main__":
    main()
