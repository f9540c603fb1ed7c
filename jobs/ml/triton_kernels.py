"""What fused.py launches, in Triton: sums of few rows of a table, and which latents are largest.

No two programs write to one place, and each sums in a fixed order: the same inputs give the same bits. Names at the
annotations are Triton's, since it reads them too: a `tl.tensor` is a number or the address of the first of many.
"""

import triton
import triton.language as tl


@triton.jit
def gather_sum(
    table: tl.tensor, rows: tl.tensor, starts: tl.tensor, weights: tl.tensor, out: tl.tensor,
    n: tl.tensor, n_segments: tl.tensor, D: tl.tensor, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """One segment, some columns: see support.gather_sum."""
    segment = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.load(starts + segment)
    end = tl.load(starts + segment + 1, mask=segment + 1 < n_segments, other=n)
    total = tl.zeros((COLUMNS,), tl.float32)
    for place in range(first, end, ROWS):
        places = place + tl.arange(0, ROWS)
        here = places < end
        row = tl.load(rows + places, mask=here, other=0)
        weight = tl.load(weights + places, mask=here, other=0.0)
        inside = here[:, None] & (columns < D)[None, :]
        numbers = tl.load(table + row[:, None] * D + columns[None, :], mask=inside, other=0.0)
        total += tl.sum(numbers.to(tl.float32) * weight.to(tl.float32)[:, None], axis=0)
    tl.store(out + segment * D + columns, total, mask=columns < D)


@triton.jit
def gather_dot(
    vectors: tl.tensor, table: tl.tensor, latents: tl.tensor, starts: tl.tensor, out: tl.tensor,
    n: tl.tensor, n_rows: tl.tensor, D: tl.tensor, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """The places of one row: see Sparse.dot_rows."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(starts + row)
    end = tl.load(starts + row + 1, mask=row + 1 < n_rows, other=n)
    for place in range(first, end, ROWS):
        places = place + tl.arange(0, ROWS)
        here = places < end
        latent = tl.load(latents + places, mask=here, other=0)
        total = tl.zeros((ROWS,), tl.float32)
        for column in range(0, D, COLUMNS):
            columns = column + tl.arange(0, COLUMNS)
            vector = tl.load(vectors + row * D + columns, mask=columns < D, other=0.0)
            inside = here[:, None] & (columns < D)[None, :]
            numbers = tl.load(table + latent[:, None] * D + columns[None, :], mask=inside, other=0.0)
            total += tl.sum(numbers.to(tl.float32) * vector.to(tl.float32)[None, :], axis=1)
        tl.store(out + places, total, mask=here)


@triton.jit
def ordered(bits: tl.tensor, MASK: tl.constexpr) -> tl.tensor:
    """As compiled.ordered, in 32 bits."""
    bits = bits.to(tl.int32)
    return bits ^ ((bits >> 31) & MASK)


@triton.jit
def first_largest(keys: tl.tensor, valid: tl.tensor, k: tl.tensor, BITS: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Which of the keys are the k largest, of equal ones the first; and how many of those come before each. The k-th is
    found by halving the range in which it lies."""
    low = tl.full((), -(2 ** (BITS - 1)), tl.int64)
    high = tl.full((), 2 ** (BITS - 1) - 1, tl.int64)
    for _ in range(BITS):
        middle = (low + high + 1) >> 1
        enough = tl.sum((valid & (keys >= middle)).to(tl.int32)) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    more, equal = valid & (keys > low), valid & (keys == low)
    left = k - tl.sum(more.to(tl.int32))
    chosen = more | (equal & (tl.cumsum(equal.to(tl.int32)) <= left))
    return chosen, tl.cumsum(chosen.to(tl.int32)) - 1


@triton.jit
def largest_groups(
    bits: tl.tensor, out: tl.tensor, k: tl.tensor, n_groups: tl.tensor,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, MASK: tl.constexpr,
) -> None:  # fmt: skip
    """The k groups of one row with the largest maxima: the first pass of selection.largest."""
    row = tl.program_id(0).to(tl.int64)
    groups = tl.arange(0, WIDTH)
    valid = groups < n_groups
    own = bits + row * n_groups * GROUP + groups
    maxima = ordered(tl.load(own, mask=valid, other=0), MASK)
    for i in range(1, GROUP):
        maxima = tl.maximum(maxima, ordered(tl.load(own + i * n_groups, mask=valid, other=0), MASK))
    chosen, before = first_largest(maxima, valid, k, BITS)
    tl.store(out + row * k + before, groups, mask=chosen)


@triton.jit
def largest_in_groups(
    bits: tl.tensor, chosen_groups: tl.tensor, out: tl.tensor, k: tl.tensor, n_groups: tl.tensor,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, MASK: tl.constexpr,
) -> None:  # fmt: skip
    """The k largest of one row within those groups, ascending: its second pass. WIDTH: at least k."""
    row = tl.program_id(0).to(tl.int64)
    candidates = tl.arange(0, GROUP * WIDTH)
    valid = candidates % WIDTH < k
    group = tl.load(chosen_groups + row * k + candidates % WIDTH, mask=valid, other=0)
    latents = candidates // WIDTH * n_groups + group
    keys = ordered(tl.load(bits + row * n_groups * GROUP + latents, mask=valid, other=0), MASK)
    chosen, before = first_largest(keys, valid, k, BITS)
    tl.store(out + row * k + before, latents.to(tl.int64), mask=chosen)
