"""Which latents a batch uses: the largest per row, the largest of the batch, or all above a threshold.

The encoder's product is the one dense product of a training step. It runs in chunks of rows that stay in a processor's
cache. A dtype says in which precision, None is that of x: in bfloat16 only the choice is coarse, the chosen values are
computed in full precision afterwards.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from jobs.ml import compiled, fused
from jobs.ml.parallel import ALONE, Ranks
from jobs.ml.support import Dense, Linear, Sparse, Support

CHUNK = {"cpu": 3 * 2**20, "cuda": 2**29}  # pre-activations held at once
GROUP = 16  # latents of which a first pass sees only the largest
SPARSE = 1 / 8  # of all places, at most: else whole matrices are faster
SAMPLE_ROWS = 64  # that a threshold for the whole batch is guessed on
GENEROUS = 1.5  # the guess is such that it lets through this many times as many of the sample as are wanted
MARGIN = 2**-7  # relative; bfloat16 has 8 bits


def preactivations(x: Tensor, encoder: Linear, dtype: torch.dtype | None) -> Iterator[tuple[int, Tensor]]:
    """The first row of each chunk, and its pre-activations [rows, M]: they last until the next one."""
    dtype = dtype or x.dtype
    W, b = encoder.W.to(dtype), encoder.b.to(dtype)
    x = (x if encoder.centre is None else x - encoder.centre).to(dtype)
    rows = max(1, CHUNK.get(x.device.type, CHUNK["cuda"]) // len(W))
    room = torch.empty(min(rows, len(x)), len(W), dtype=dtype, device=x.device)
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        yield start, torch.addmm(b, part, W.T, out=room[: len(part)])


def largest(a: Tensor, k: int) -> Tensor:
    """The latents [B, k] of the k largest of each row of a [B, M].

    They are in the k groups with the largest maxima. Groups are strided, so that maxima are taken of whole rows. Of
    equal groups the first are taken, and of equal places in those: compiled or not, they are the same, ascending.
    """
    B, M = a.shape
    n_groups = M // GROUP
    if M % GROUP or n_groups < 4 * k or a.dtype not in compiled.INTEGERS:
        return a.topk(k, dim=1, sorted=False).indices
    if fused.selects(a, k, GROUP):
        return fused.largest(a, k, GROUP)
    if compiled.usable(a):
        return compiled.largest(a, k)
    if a.device.type != "cpu":
        return a.topk(k, dim=1, sorted=False).indices
    groups = first_largest(a.view(B, GROUP, n_groups).amax(1), torch.arange(n_groups), k)
    latents = (groups[:, None, :] + n_groups * torch.arange(GROUP)[:, None]).view(B, -1)
    return first_largest(a.gather(1, latents), latents, k).sort(1).values


def first_largest(values: Tensor, numbers: Tensor, k: int) -> Tensor:
    """The numbers [B, k] of the k largest values [B, n] of each row; of equal values, the smallest numbers."""
    keys = (compiled.ordered(values).long() << 32) + (2**32 - 1 - numbers)
    return 2**32 - 1 - (keys.topk(k, dim=1, sorted=False).values & 2**32 - 1)


@torch.no_grad()
def largest_of_rows(x: Tensor, encoder: Linear, k: int, dtype: torch.dtype | None, *, signed: bool = False) -> Sparse:
    """The k largest pre-activations of each row; signed: the k farthest from zero. With their values where those are
    exact."""
    exact = dtype is None and not signed
    latents, values = [], []
    for _, a in preactivations(x, encoder, dtype):
        latents.append(largest(a.abs_() if signed else a, k))
        if exact:
            values.append(a.gather(1, latents[-1]))
    return Sparse.of_rows(torch.cat(latents), len(encoder.W), torch.cat(values) if exact else None)


@torch.no_grad()
def largest_of_batch(
    x: Tensor, encoder: Linear, n: int, dtype: torch.dtype | None, ranks: Ranks = ALONE
) -> tuple[Sparse, float]:
    """The n largest positive pre-activations of the batch, and the least of them; fewer where fewer are positive. Of
    several processes each has a part of the batch, and n is its share.

    The threshold that lets few more than n through is guessed on the first rows. A guess that was too high is seen by
    what came through, and another is made: the result is exact.
    """
    share = GENEROUS * n / len(x)
    while True:
        floor, pairs = -1.0, []
        for start, a in preactivations(x, encoder, dtype):
            if start == 0:
                floor = ranks.least(guess(a, share))
            rows, latents = above(a, floor)
            pairs.append((rows + start, latents, a[rows, latents]))
        rows, latents, values = (torch.cat(part) for part in zip(*pairs, strict=True))
        whole, own = ranks.gather(values.float())
        if len(whole) >= n * ranks.size or floor <= 0:
            break
        share *= 4
    if len(whole) > n * ranks.size:
        least = whole.kthvalue(len(whole) - n * ranks.size + 1).values
        kept = first_of(whole, least, n * ranks.size)
        whole = whole[kept]
        if ranks.size > 1:
            kept = kept[(kept >= own.start) & (kept < own.stop)] - own.start
        rows, latents = rows[kept], latents[kept]
    return Sparse.of_pairs(rows, latents, len(x), len(encoder.W)), float(whole.min()) if len(whole) else 0.0


def guess(a: Tensor, share: float) -> float:
    """What about `share` per row of the first rows of a [rows, M] are above, and a little less than any of those; 0 at
    least, and where that would be all of them."""
    sample = a[:SAMPLE_ROWS]
    n = int(share * len(sample)) + 1
    if n >= sample.numel():
        return 0.0
    return max(0.0, (1 - MARGIN) * float(sample.flatten().topk(n, sorted=False).values.min()))


def first_of(values: Tensor, least: Tensor, n: int) -> Tensor:
    """The places of the n largest: of those equal to the least, the first."""
    kept = values > least
    equal = (values == least).nonzero().flatten()[: n - int(kept.sum())]
    kept[equal] = True
    return kept.nonzero().flatten()


def above(a: Tensor, floor: Tensor | float) -> tuple[Tensor, Tensor]:
    """Rows and latents of what is above the floor ([M], or one for all) in a [rows, M]."""
    floor = torch.as_tensor(floor, dtype=a.dtype, device=a.device) + 0.0  # no -0
    if compiled.usable(a):
        return compiled.above(a, floor.expand(a.shape[1]))
    places = (a > floor).flatten().nonzero().flatten()
    rows = torch.div(places, a.shape[1], rounding_mode="floor")
    return rows, places - rows * a.shape[1]


@torch.no_grad()
def above_floor(x: Tensor, encoder: Linear, floor: Tensor | float, dtype: torch.dtype | None) -> Support:
    """All places whose pre-activation is above the floor, and with bfloat16 a few beside; Dense where they are many."""
    if dtype is not None:
        scale = encoder.W.norm(dim=1).mean() * x[:SAMPLE_ROWS].norm(dim=1).mean()
        floor = floor - MARGIN * (scale / encoder.W.shape[1] ** 0.5 + abs(floor))
    limit, found, pairs = SPARSE * len(x) * len(encoder.W), 0, []
    for start, a in preactivations(x, encoder, dtype):
        if start == 0 and (a[:SAMPLE_ROWS] > floor).float().mean() > SPARSE:
            return Dense()
        rows, latents = above(a, floor)
        pairs.append((rows + start, latents, *(() if dtype else (a[rows, latents],))))
        found += len(rows)
        if found > limit:
            return Dense()
    rows, latents, *values = (torch.cat(part) for part in zip(*pairs, strict=True))
    return Sparse.of_pairs(rows, latents, len(x), len(encoder.W), *values)
