"""draw_nodes, draw_nodes_weighted and draw_nodes_by_score on the GPU: one program a window.

It goes over the row block by block: to make the keys, which stay in the cache, to find the smallest one that is left, and to
write the nodes before it. Nothing of a block stays in registers, so that a row may have any length.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# The Philox stream of node draws, stprune.reference.random.NODES.
STREAM = tl.constexpr(4)
# As in stprune.reference.draw_nodes.
SCALED_NODES = tl.constexpr(64)
LARGEST_LEVEL = tl.constexpr(254)
UNKNOWN_LEVEL = tl.constexpr(255)
# What nodes are drawn by: nothing, weights of the batch's windows, scores of all windows, scores in 8 bits.
UNIFORM = tl.constexpr(0)
WEIGHTS = tl.constexpr(1)
SCORES = tl.constexpr(2)
LEVELS = tl.constexpr(3)
# floor + rest * x rounds twice, as on the CPU. Of the assertions only ours.
OPTIONS = {"enable_fp_fusion": False, "sanitize_overflow": False}


@triton.jit
def words_of(node, window, epoch, seed):
    """The random word of each node of a window: word (i >> 4) & 3 of Philox counter 16 (i >> 6) + (i & 15)."""
    counter = (16 * (node >> 6) + (node & 15)).to(tl.uint32)
    second = (window & 0xFFFFFFFF).to(tl.uint32)
    fourth = (((window >> 32) << 8) | STREAM).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, counter, second, tl.full([1], epoch, tl.int64).to(tl.uint32), fourth)
    which = (node >> 4) & 3
    return tl.where(which < 2, tl.where(which == 0, w0, w1), tl.where(which == 2, w2, w3))


@triton.jit
def _given(given, scale, row, node, inside, columns, BY: tl.constexpr):
    """The weights or scores of a row; a score is infinite where it is unknown."""
    values = tl.load(given + row * columns + node, mask=inside, other=1)
    if values.dtype == tl.bfloat16:
        # Its bits are the upper half: a conversion is slower, and older GPUs have none.
        found = (values.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        found = values.to(tl.float32)
    if BY == LEVELS:
        of_block = tl.load(scale + row * (columns // SCALED_NODES) + node // SCALED_NODES, mask=inside, other=0.0)
        # Division with the host's rounding.
        share = tl.div_rn(found, tl.full(found.shape, LARGEST_LEVEL, tl.float32))
        found = tl.where(values == UNKNOWN_LEVEL, float("inf"), share * share * of_block)
    return found


@triton.jit
def _mean_known(given, scale, row, columns, num_nodes, BY: tl.constexpr, BLOCK: tl.constexpr):
    """The mean of a row's scores below infinity, summed as integers: see stprune.reference.draw_nodes, mean_known."""
    largest, number, total = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int64)
    for first in range(0, num_nodes, BLOCK):
        bits, known = _bits_of(given, scale, row, first, columns, num_nodes, BY, BLOCK)
        largest, number = tl.maximum(largest, bits), number + known.to(tl.int32)
    top = tl.maximum(tl.max(largest, 0) >> 23, 1)
    for first in range(0, num_nodes, BLOCK):
        bits, _ = _bits_of(given, scale, row, first, columns, num_nodes, BY, BLOCK)
        mantissa = (bits & 0x7FFFFF) | ((bits >= 0x800000).to(tl.int32) << 23)
        total += ((mantissa << 7) >> tl.minimum(top - tl.maximum(bits >> 23, 1), 31)).to(tl.int64)
    unit = ((top + (1023 - 157)).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    divisor = tl.maximum(tl.sum(number, 0), 1).to(tl.float64)
    return (tl.sum(total, 0).to(tl.float64) * unit / divisor).to(tl.float32)


@triton.jit
def _bits_of(given, scale, row, first, columns, num_nodes, BY: tl.constexpr, BLOCK: tl.constexpr):
    """The bits of known scores, 0 elsewhere; and which are known."""
    node = first + tl.arange(0, BLOCK)
    inside = node < num_nodes
    score = _given(given, scale, row, node, inside, columns, BY)
    known = inside & (score < float("inf"))
    return tl.where(known, score, 0.0).to(tl.int32, bitcast=True), known


@triton.jit
def _chance(score, mean, floor, rest):
    """The chance of each node by its score, as in stprune.reference.draw_nodes, chances_of."""
    mean += tl.zeros(score.shape, tl.float32)
    relative = tl.where((score < float("inf")) & (mean > 0.0), tl.div_rn(score, tl.maximum(mean, 1e-30)), 1.0)
    return floor + rest * relative


@triton.jit(do_not_specialize=["columns", "num_rows", "num_nodes", "count", "seed", "epoch"], debug=True)
def _draw_nodes_kernel(
    given,  # what BY says: [B, columns] weights, [num_rows, columns] scores, or unused
    scale,  # [num_rows, columns / 64] float32, or unused
    index,  # [B] int64
    keys,  # [B, num_nodes] uint32, scratch
    nodes,  # [B, count] int64
    factors,  # [B, count] float32, or unused
    columns,
    num_rows,
    num_nodes,
    count,
    seed,
    epoch,
    floor,
    rest,
    share: tl.float32,
    BY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    window = tl.load(index + row)
    keys += row * num_nodes
    at, mean = row, 0.0
    if BY >= SCORES:
        exists = (window >= 0) & (window < num_rows)
        tl.device_assert(exists, "Priority.draw: index must lie in [0, number of windows - 1]")
        at = tl.where(exists, window, 0)
        mean = _mean_known(given, scale, at, columns, num_nodes, BY, BLOCK)
    least, most = tl.full([BLOCK], float("inf"), tl.float32), tl.zeros([BLOCK], tl.float32)
    for first in range(0, num_nodes, BLOCK):
        node = first + tl.arange(0, BLOCK)
        inside = node < num_nodes
        key = words_of(node, window, epoch, seed)
        if BY != UNIFORM:
            weight = _given(given, scale, at, node, inside, columns, BY)
            if BY >= SCORES:
                weight = _chance(weight, mean, floor, rest)
                least = tl.minimum(least, tl.where(inside, weight, float("inf")))
                most = tl.maximum(most, tl.where(inside, weight, 0.0))
            # Positive floats have the order of their bits.
            ratio = tl.div_rn((key.to(tl.float32) + 0.5) * 2.3283064365386963e-10, weight)
            key = tl.minimum(ratio, 3.4028234663852886e38).to(tl.uint32, bitcast=True)
        tl.store(keys + node, key, mask=inside)
    # From here on threads read keys that others have written.
    tl.debug_barrier()
    # The smallest key that is left, bit by bit from the highest: a bit is set when no more keys than are kept lie below it.
    threshold, less = tl.zeros([], tl.uint32), tl.zeros([], tl.int32)
    for i in range(32):
        bit = tl.full([], 1, tl.uint32) << (31 - i)
        number = tl.zeros([BLOCK], tl.int32)
        for first in range(0, num_nodes, BLOCK):
            node = first + tl.arange(0, BLOCK)
            key = tl.load(keys + node, mask=node < num_nodes, other=0xFFFFFFFF)
            number += ((node < num_nodes) & (key < (threshold | bit))).to(tl.int32)
        below = tl.sum(number, 0)
        less = tl.where(below <= count, below, less)
        threshold = tl.where(below <= count, threshold | bit, threshold)
    # One that underflowed to zero would make the weights infinite.
    tau = 1.0 / tl.maximum(threshold.to(tl.float32, bitcast=True), 1.401298464324817e-45).to(tl.float64)
    equal = tl.min(least, 0) == tl.max(most, 0)
    free, place = count - less, row * count
    for first in range(0, num_nodes, BLOCK):
        node = first + tl.arange(0, BLOCK)
        inside = node < num_nodes
        key = tl.load(keys + node, mask=inside, other=0xFFFFFFFF)
        tie = (inside & (key == threshold)).to(tl.int32)
        kept = ((inside & (key < threshold)) | ((tie > 0) & (tl.cumsum(tie, 0) <= free))).to(tl.int32)
        to = place + tl.cumsum(kept, 0) - 1
        tl.store(nodes + to, node.to(tl.int64), mask=kept > 0)
        if BY != UNIFORM:
            weight = _given(given, scale, at, node, kept > 0, columns, BY)
            if BY >= SCORES:
                weight = _chance(weight, mean, floor, rest)
            factor = tl.maximum(tau / weight.to(tl.float64), 1.0).to(tl.float32)
            if BY >= SCORES:
                factor = tl.where(equal, 1.0, factor * share)
            tl.store(factors + to, factor, mask=kept > 0)
        free -= tl.sum(tie, 0)
        place += tl.sum(kept, 0)


# Lanes of a program, and of a thread. By arithmetic, not yet timed: a row of 8,600 nodes takes three turns of 16 warps.
BLOCK = 4096
LANES = 8


def warps_of(block: int) -> int:
    """Warps of a program."""
    return max(1, block // (32 * LANES))


def draw_nodes(index: Tensor, num_nodes: int, count: int, seed: int, epoch: int) -> Tensor:
    """Nodes [B, count] of the windows, uniformly; arguments as in the op's schema."""
    return _launch(UNIFORM, index, index, index, num_nodes, count, seed, epoch)[0]


def draw_nodes_weighted(weights: Tensor, index: Tensor, count: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Nodes and what they count for, [B, count] each; fewer than all nodes."""
    weights = weights.contiguous()
    return _launch(WEIGHTS, weights, weights, index, weights.shape[1], count, seed, epoch)


def draw_nodes_by_score(
    values: Tensor, scale: Tensor, index: Tensor, num_nodes: int, count: int, floor: float, seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """The same by the scores in a table of pairs."""
    return _launch(LEVELS if scale.numel() else SCORES, values, scale, index, num_nodes, count, seed, epoch, floor)


def _launch(
    by: tl.constexpr, given: Tensor, scale: Tensor, index: Tensor, num_nodes: int, count: int, seed: int, epoch: int,
    floor: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    nodes = index.new_empty((index.numel(), count))
    factors = nodes if by is UNIFORM else index.new_empty(nodes.shape, dtype=torch.float32)
    if index.numel():
        block = min(BLOCK, max(32, triton.next_power_of_2(num_nodes)))
        keys = index.new_empty((index.numel(), num_nodes), dtype=torch.uint32)
        _draw_nodes_kernel[(index.numel(),)](
            given, scale, index.contiguous(), keys, nodes, factors,
            given.shape[-1], given.shape[0], num_nodes, count, seed, epoch, floor, 1.0 - floor, count / num_nodes,
            BY=by.value, BLOCK=block, num_warps=warps_of(block), **OPTIONS,
        )  # fmt: skip
    return nodes, factors
