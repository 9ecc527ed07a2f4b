"""draw_nodes and draw_nodes_weighted on the GPU: one program a window, its keys in registers from first to last."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# The Philox stream of node draws, stprune.reference.random.NODES.
STREAM = tl.constexpr(4)


@triton.jit
def words_of(node, window, epoch, seed):
    """The random word of each node of a window: word (i >> 4) & 3 of Philox counter 16 (i >> 6) + (i & 15)."""
    counter = (16 * (node >> 6) + (node & 15)).to(tl.uint32)
    second = (window & 0xFFFFFFFF).to(tl.uint32)
    fourth = (((window >> 32) << 8) | STREAM).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, counter, second, tl.full([1], epoch, tl.int64).to(tl.uint32), fourth)
    which = (node >> 4) & 3
    return tl.where(which < 2, tl.where(which == 0, w0, w1), tl.where(which == 2, w2, w3))


@triton.jit(do_not_specialize=["num_nodes", "count", "seed", "epoch"])
def _draw_nodes_kernel(
    weights,  # [B, num_nodes] float32, or unused
    index,  # [B] int64
    nodes,  # [B, count] int64
    factors,  # [B, count] float32, or unused
    num_nodes,
    count,
    seed,
    epoch,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    node = tl.arange(0, BLOCK)
    inside = node < num_nodes
    key = words_of(node, tl.load(index + row), epoch, seed)
    if WEIGHTED:
        weight = tl.load(weights + row * num_nodes + node, mask=inside, other=1.0)
        # Division with the host's rounding; positive floats have the order of their bits.
        ratio = tl.div_rn((key.to(tl.float32) + 0.5) * 2.3283064365386963e-10, weight)
        key = tl.minimum(ratio, 3.4028234663852886e38).to(tl.uint32, bitcast=True)
    # The count-th smallest key, bit by bit from the highest: a bit is set when too few keys lie below it.
    threshold = tl.zeros([1], tl.uint32)
    for i in range(32):
        bit = tl.full([1], 1, tl.uint32) << (31 - i)
        below = tl.sum((inside & (key <= (threshold | (bit - 1)))).to(tl.int32), 0)
        threshold = tl.where(below < count, threshold | bit, threshold)
    below = inside & (key < threshold)
    tie = inside & (key == threshold)
    rest = count - tl.sum(below.to(tl.int32), 0)
    kept = below | (tie & (tl.cumsum(tie.to(tl.int32), 0) <= rest))
    place = row * count + tl.cumsum(kept.to(tl.int32), 0) - 1
    tl.store(nodes + place, node.to(tl.int64), mask=kept)
    if WEIGHTED:
        # The smallest key that is not kept; one that underflowed to zero would make the weights infinite.
        left = tl.where(inside & (kept == 0), key.to(tl.float32, bitcast=True), float("inf"))
        tau = 1.0 / tl.maximum(tl.min(left, 0), 1.401298464324817e-45).to(tl.float64)
        factor = tl.maximum(tau / weight.to(tl.float64), 1.0).to(tl.float32)
        tl.store(factors + place, factor, mask=kept)


def block_of(num_nodes: int) -> int:
    """Lanes of a program."""
    return max(32, int(triton.next_power_of_2(num_nodes)))


def warps_of(block: int) -> int:
    """A thread holds 16 keys, with more than 8,192 nodes 32."""
    return min(16, max(1, block // 512))


def draw_nodes(index: Tensor, num_nodes: int, count: int, seed: int, epoch: int) -> Tensor:
    """Nodes [B, count] of the windows, uniformly; arguments as in the op's schema, at most 16,384 nodes."""
    nodes = index.new_empty((index.numel(), count))
    _launch(None, index, num_nodes, seed, epoch, nodes, None)
    return nodes


def draw_nodes_weighted(weights: Tensor, index: Tensor, count: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Nodes and what they count for, [B, count] each; fewer than all nodes, of which there are at most 16,384."""
    nodes = index.new_empty((index.numel(), count))
    factors = weights.new_empty(nodes.shape)
    _launch(weights.contiguous(), index, weights.shape[1], seed, epoch, nodes, factors)
    return nodes, factors


def _launch(
    weights: Tensor | None, index: Tensor, num_nodes: int, seed: int, epoch: int, nodes: Tensor, factors: Tensor | None
) -> None:
    if index.numel() == 0:
        return
    block = block_of(num_nodes)
    _draw_nodes_kernel[(index.numel(),)](
        nodes if weights is None else weights, index, nodes, nodes if factors is None else factors,
        num_nodes, nodes.shape[1], seed, epoch,
        WEIGHTED=weights is not None, BLOCK=block, num_warps=warps_of(block),
    )  # fmt: skip
