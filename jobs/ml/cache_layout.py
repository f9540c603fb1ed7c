"""What an activation cache looks like on disk, and how large it becomes. Needs neither torch nor numpy.

A folder holds, for every site, `<number>-<site>-00000.safetensors` and so on, each with the tensor `activations`
[tokens, width] and for int8 also `scale` [tokens]. Beside them `shard-00000.safetensors` has what the sites share: the
positions of the tokens in the split (sequence * context + place), the sums that statistics are made of, and the
checksums of the shard's other files. It is written last: a shard that has it is whole. manifest.json ends the cache.
"""

import re
from collections.abc import Sequence

STORED = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1}  # bytes an entry
SHARD_TOKENS = 2**15
SHARD_BYTES = 2**28  # of one site
BUFFER_BYTES = 2**30  # of all sites together: what a shard takes in memory before it is written


def token_bytes(width: int, stored: str) -> int:
    """int8 has a float32 scale beside each token."""
    return width * STORED[stored] + (4 if stored == "int8" else 0)


def cache_bytes(widths: Sequence[int], stored: str, tokens: int) -> int:
    """On disk, but for headers and sums, which are less than a hundredth."""
    return tokens * (sum(token_bytes(width, stored) for width in widths) + 8)


def rows_per_shard(widths: Sequence[int], stored: str, context_length: int, model_batch: int) -> int:
    """Sequences, in whole forward passes of `model_batch`."""
    sizes = [token_bytes(width, stored) for width in widths]
    tokens = min(SHARD_TOKENS, SHARD_BYTES // max(sizes), BUFFER_BYTES // sum(sizes))
    return max(1, tokens // context_length // model_batch) * model_batch


def buffer_bytes(widths: Sequence[int], stored: str, context_length: int, model_batch: int) -> int:
    """What a shard takes in memory, and one forward pass of its activations in float32."""
    rows = rows_per_shard(widths, stored, context_length, model_batch)
    shard = rows * context_length * sum(token_bytes(width, stored) for width in widths)
    return shard + 4 * model_batch * context_length * sum(widths)


def site_file(number: int, site: str, shard: int) -> str:
    return f"{number:02d}-{re.sub(r'[^A-Za-z0-9._-]', '_', site)[:100]}-{shard:05d}.safetensors"


def shard_file(shard: int) -> str:
    return f"shard-{shard:05d}.safetensors"
