"""keep_pairs on the GPU: of equal windows of a batch the last one alone writes, so nothing races."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Ids of a batch that are compared at a time, and drawn nodes of a program: at least one for each thread, as of threads that
# hold the same place one could write it before another one looks. By arithmetic, not yet timed on a GPU.
BLOCK_OTHER = 1024
BLOCK_NODE = 1024
NUM_WARPS = 4


@triton.jit(do_not_specialize=["size", "count", "num_windows"])
def _keep_pairs_kernel(
    index,  # [B] int64
    node,  # [B, count] int64
    scores,  # [B, count] float32
    kept_node,  # [num_windows, count] int32
    kept_score,  # [num_windows, count] float32
    fresh,  # [num_windows] bool
    size,
    count,
    num_windows,
    BLOCK_OTHER: tl.constexpr,
    BLOCK_NODE: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    window = tl.load(index + place)
    later = tl.zeros([BLOCK_OTHER], tl.int32)
    for first in range(0, size, BLOCK_OTHER):
        other = first + tl.arange(0, BLOCK_OTHER)
        same = tl.load(index + other, mask=other < size, other=0) == window
        later += (same & (other < size) & (other > place)).to(tl.int32)
    writes = (window >= 0) & (window < num_windows) & (tl.sum(later, 0) == 0)
    # A row is written as a whole, and no node is 0 there: each place says by itself whether the row is taken.
    at = tl.program_id(1) * BLOCK_NODE + tl.arange(0, BLOCK_NODE)
    to, start = window * count + at, place * count + at
    free = writes & (at < count)
    free = free & (tl.load(kept_node + to, mask=free, other=1) == 0)
    tl.store(kept_node + to, tl.load(node + start, mask=free, other=0).to(tl.int32) + 1, mask=free)
    tl.store(kept_score + to, tl.load(scores + start, mask=free, other=0.0), mask=free)
    tl.store(fresh + window + at * 0, free, mask=free & (at == 0))


def keep_pairs(index: Tensor, node: Tensor, scores: Tensor, kept_node: Tensor, kept_score: Tensor, fresh: Tensor) -> None:
    """Launch the kernel; arguments as in the op's schema."""
    if (size := index.numel()) == 0:
        return
    windows, count = kept_node.shape
    _keep_pairs_kernel[(size, triton.cdiv(count, BLOCK_NODE))](
        index, node, scores, kept_node, kept_score, fresh, size, count, windows,
        BLOCK_OTHER=BLOCK_OTHER, BLOCK_NODE=BLOCK_NODE, num_warps=NUM_WARPS,
    )  # fmt: skip
