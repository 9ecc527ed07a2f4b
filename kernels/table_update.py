"""table_update on the GPU: one launch; of equal ids only the last writes, so nothing races and nothing is sorted."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Ids of one program, and ids it compares them with at a time: a batch of 16,384 makes 10^8 comparisons, some microseconds.
# Chosen by that arithmetic, not yet timed on a GPU.
BLOCK_ID = 64
BLOCK_OTHER = 128
NUM_WARPS = 4
# Bits of a mark, as in stprune.reference.table_update.
TRAINED = tl.constexpr(4)
SCORED_FRESH_KNOWN = tl.constexpr(11)


@triton.jit
def _table_update_kernel(
    scores,  # [n] float32
    marks,  # [n] uint8
    variance,  # [n] float32, or unused
    count,  # [3] int64: samples trained on in this epoch, unused, samples of all trained batches
    index,  # [B] int64
    values,  # [B] float32
    entries,  # [B] int64, or unused
    num_samples,
    size,
    BETA: tl.constexpr,
    ONE_MINUS_BETA: tl.constexpr,
    HAS_VARIANCE: tl.constexpr,
    HAS_ENTRIES: tl.constexpr,
    IS_TRAINED: tl.constexpr,
    BLOCK_ID: tl.constexpr,
    BLOCK_OTHER: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    place = program * BLOCK_ID + tl.arange(0, BLOCK_ID)
    valid = place < size
    ids = tl.load(index + place, mask=valid, other=-1)
    later = tl.zeros([BLOCK_ID], tl.int32)
    first = program * BLOCK_ID
    while first < size:
        other = first + tl.arange(0, BLOCK_OTHER)
        theirs = tl.load(index + other, mask=other < size, other=-2)
        same = (ids[:, None] == theirs[None, :]) & (other[None, :] > place[:, None])
        later = tl.maximum(later, tl.max(same.to(tl.int32), 1))
        first += BLOCK_OTHER
    # An id outside the table is asserted against by the caller; it is never written.
    winner = valid & (later == 0) & (ids >= 0) & (ids < num_samples)
    mark = tl.load(marks + ids, mask=winner, other=0).to(tl.int32)
    if IS_TRAINED:
        # Trained on before in this epoch: left as it is.
        winner = winner & ((mark & TRAINED) == 0)
        mark = mark | TRAINED
        tl.atomic_add(count, tl.sum(winner.to(tl.int64), 0))
        if program == 0:
            tl.store(count + 2, tl.load(count + 2) + size)
    scored = winner
    if HAS_ENTRIES:
        scored = winner & (tl.load(entries + place, mask=winner, other=0) > 0)
    old = tl.load(scores + ids, mask=scored, other=0.0)
    new = tl.load(values + place, mask=scored, other=0.0)
    # A score that is not finite is replaced, never averaged.
    smooth = tl.abs(old) < float("inf")
    if HAS_VARIANCE:
        before = tl.load(variance + ids, mask=scored, other=0.0)
        change = new - old
        moved = BETA * before + ONE_MINUS_BETA * (change * change)
        tl.store(variance + ids, tl.where(smooth & (tl.abs(new) < float("inf")), moved, before), mask=scored)
    tl.store(scores + ids, tl.where(smooth, BETA * old + ONE_MINUS_BETA * new, new), mask=scored)
    mark = tl.where(scored, mark | SCORED_FRESH_KNOWN, mark)
    tl.store(marks + ids, mark.to(tl.uint8), mask=winner)


def table_update(
    scores: Tensor,
    marks: Tensor,
    variance: Tensor | None,
    count: Tensor,
    index: Tensor,
    values: Tensor,
    entries: Tensor | None,
    beta: float,
    trained: bool,
) -> None:
    """Launch the kernel; arguments as in stprune.ops.table_update."""
    if index.numel() == 0:
        return
    _table_update_kernel[(triton.cdiv(index.numel(), BLOCK_ID),)](
        scores, marks, scores if variance is None else variance, count, index, values,
        index if entries is None else entries, scores.numel(), index.numel(), BETA=beta, ONE_MINUS_BETA=1.0 - beta,
        HAS_VARIANCE=variance is not None, HAS_ENTRIES=entries is not None, IS_TRAINED=trained,
        BLOCK_ID=BLOCK_ID, BLOCK_OTHER=BLOCK_OTHER, num_warps=NUM_WARPS,
    )  # fmt: skip
