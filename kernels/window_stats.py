"""window_stats on the GPU: windows as a suffix of one block of rows and a prefix of the next, nothing ever subtracted."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# A program has a warp's worth of nodes: 128 bytes of a float32 row, and enough programs for every multiprocessor also
# where nodes are few. Chosen by that arithmetic, not yet timed on a GPU.
BLOCK_NODE = 32
# Of the machine's registers as many as it takes: the compiler would spill some rather than use more than 168.
OPTIONS = {"num_warps": 1, "maxnreg": 255}
# Programs that run at a time keep their suffix sums in global memory, this much of it in all; 12 arrays of float64
# [length, BLOCK_NODE] each.
SCRATCH_BYTES = 1 << 28
NUM_ARRAYS = 12
MOST_PROGRAMS = 132 * 16
# Columns that share one partial sum, as in the reference.
SPAN = 4096
NUM_SUMS = 8


@triton.jit
def _entries(series, row, row_stride, column, inside, null, HAS_NULL: tl.constexpr):
    """A row's values in float64 and which of them are valid."""
    raw = tl.load(series + row * row_stride + column, mask=inside, other=0.0)
    kept = inside & (raw == raw)
    if HAS_NULL:
        kept = kept & (raw != null)
    return raw.to(tl.float64), kept


# A stride or a length of 1 would otherwise become a constant without a type, and every size compile anew.
@triton.jit(do_not_specialize=["num_columns", "num_windows", "num_groups", "length", "history", "stride", "phase"])
def _window_stats_kernel(
    series,  # [rows, columns]
    inverse_std,  # [columns] float64
    scratch,  # [programs, NUM_ARRAYS, length, BLOCK_NODE] float64
    sums,  # [column blocks, windows, 8] float64, or unused
    nodes,  # [6, windows, columns] float32, or unused
    infinite,  # [1] bool
    null: tl.float64,
    row_stride,
    num_columns,
    num_windows,
    num_groups,
    length,
    history,
    stride,
    phase,
    PER_NODE: tl.constexpr,
    HAS_NULL: tl.constexpr,
    BLOCK_NODE: tl.constexpr,
    NUM_ARRAYS: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1).to(tl.int64)
    program = group * tl.num_programs(0) + block
    lane = tl.arange(0, BLOCK_NODE)
    column = block * BLOCK_NODE + lane
    inside = column < num_columns
    scale = tl.load(inverse_std + column, mask=inside, other=0.0)
    null = tl.full([1], null, series.dtype.element_ty)
    length = length.to(tl.int64)
    stride = stride.to(tl.int64)
    plane = length * BLOCK_NODE
    # The sum of a suffix at row r; at row length + r minus that of a prefix, so that a history's sum is a difference.
    total = scratch + program * NUM_ARRAYS * plane + lane
    entries = total + 2 * plane
    square = entries + 2 * plane
    moment = square + plane
    product = moment + plane
    edges = product + plane
    place_sum = edges + plane
    place_square = place_sum + plane
    pair_count = place_square + plane
    own_total = pair_count + plane
    zero = tl.zeros([BLOCK_NODE], tl.float64)
    no = tl.zeros([BLOCK_NODE], tl.int32) != 0
    bad = no

    while group < num_groups:
        base = group * length - phase
        first_window = tl.maximum(base + stride - 1, 0) // stride
        stop_window = tl.minimum((base + length + stride - 1) // stride, num_windows)
        if first_window < stop_window:
            first = first_window * stride - base
            last = (stop_window - 1) * stride - base + 1

            # Suffixes, from the last row of the group's block backwards, about the first valid value met.
            c, s, s2, q, p, e = zero, zero, zero, zero, zero, zero
            d, n, n1, n2, np = zero, zero, zero, zero, zero
            found, previous = no, no
            r = length - 1
            while r >= first:
                x, kept = _entries(series, base + r, row_stride, column, inside, null, HAS_NULL)
                bad = bad | (kept & (tl.abs(x) == float("inf")))
                c = tl.where(kept & (found == 0), x, c)
                found = found | kept
                value = tl.where(kept, x - c, 0.0)
                place = (r - (length - 1)).to(tl.float64)
                if r < length - 1:
                    e += tl.where(kept & (previous == 0), value, 0.0)
                    e += tl.where((kept == 0) & previous, d, 0.0)
                s += value
                s2 += value * value
                q += value * place
                p += value * d
                d = value
                n += tl.where(kept, 1.0, 0.0)
                n1 += tl.where(kept, place, 0.0)
                n2 += tl.where(kept, place * place, 0.0)
                np += tl.where(kept & previous, 1.0, 0.0)
                previous = kept
                at = r * BLOCK_NODE
                tl.store(total + at, s)
                tl.store(square + at, s2)
                tl.store(moment + at, q)
                tl.store(product + at, p)
                tl.store(edges + at, e)
                tl.store(entries + at, n)
                tl.store(place_sum + at, n1)
                tl.store(place_square + at, n2)
                tl.store(pair_count + at, np)
                r -= 1
            tl.store(total + plane, zero)
            tl.store(entries + plane, zero)
            tl.store(own_total, zero)

            # Prefixes of the next block, about the same centre and about their own for windows with nothing before them.
            _, previous = _entries(series, base + length - 1, row_stride, column, inside, null, HAS_NULL)
            s, s2, q, p, e, d = zero, zero, zero, zero, zero, zero
            own_c, own_s, own_s2, own_q, own_p, own_e, own_d = zero, zero, zero, zero, zero, zero, zero
            n, n1, n2, np = zero, zero, zero, zero
            found = no
            wanted = first
            window = first_window
            r = tl.zeros([], tl.int64)
            while r < last:
                if r == wanted:
                    # What other lanes of this program stored above is read here.
                    tl.debug_barrier()
                    at = r * BLOCK_NODE
                    cut = at + history * BLOCK_NODE
                    left_n = tl.load(entries + at)
                    shared = left_n > 0.0
                    count = left_n + n
                    inverse = 1.0 / tl.maximum(count, 1.0)
                    left = tl.load(total + at)
                    sum_ = tl.where(shared, left + s, own_s)
                    behind = r + history > length
                    own_past = tl.load(own_total + tl.maximum(cut - plane, 0), mask=inside & behind, other=0.0)
                    past = tl.where(shared, left - tl.load(total + cut), own_past)
                    mean = sum_ * inverse
                    squares = tl.where(shared, tl.load(square + at) + s2, own_s2)
                    deviation = tl.maximum(squares - sum_ * mean, 0.0)
                    x, kept = _entries(series, base + r, row_stride, column, inside, null, HAS_NULL)
                    start = tl.where(kept, x - c, 0.0)
                    ends = tl.where(shared, start + d + tl.load(edges + at) + e, own_d + own_e)
                    pairs = tl.load(pair_count + at) + np
                    products = tl.where(shared, tl.load(product + at) + p, own_p)
                    covariance = products - mean * ((sum_ + sum_ - ends) - mean * pairs)
                    places = tl.load(place_sum + at) + n1
                    centre = places * inverse
                    spread = (tl.load(place_square + at) + n2) - places * centre
                    moments = tl.where(shared, tl.load(moment + at) + q, own_q)
                    past_n = left_n - tl.load(entries + cut)
                    future_n = count - past_n
                    present = count > 0.0
                    several = count > 1.0
                    drifts = (past_n > 0.0) & (future_n > 0.0) & (scale > 0.0)
                    level = tl.where(shared, c, own_c) + mean
                    trend = tl.where(several, (moments - sum_ * centre) / tl.where(several, spread, 1.0), 0.0)
                    memory = tl.where(deviation > 0.0, covariance / tl.where(deviation > 0.0, deviation, 1.0), 0.0)
                    gap = (sum_ - past) / tl.maximum(future_n, 1.0) - past / tl.maximum(past_n, 1.0)
                    drift = tl.abs(gap) * scale
                    if PER_NODE:
                        to = nodes + window * num_columns + column
                        step = num_windows.to(tl.int64) * num_columns
                        nan = float("nan")
                        tl.store(to, tl.where(present, level, nan).to(tl.float32), mask=inside)
                        tl.store(to + step, tl.where(present, deviation * inverse, nan).to(tl.float32), mask=inside)
                        tl.store(to + 2 * step, tl.where(present, trend, nan).to(tl.float32), mask=inside)
                        tl.store(to + 3 * step, tl.where(present, memory, nan).to(tl.float32), mask=inside)
                        tl.store(to + 4 * step, tl.where(drifts, drift, nan).to(tl.float32), mask=inside)
                        tl.store(to + 5 * step, (1.0 - count / length).to(tl.float32), mask=inside)
                    else:
                        to = sums + (block * num_windows + window) * 8
                        tl.store(to, tl.sum(tl.where(present, level, 0.0), 0))
                        tl.store(to + 1, tl.sum(deviation * inverse, 0))
                        tl.store(to + 2, tl.sum(tl.where(present, trend, 0.0), 0))
                        tl.store(to + 3, tl.sum(memory, 0))
                        tl.store(to + 4, tl.sum(tl.where(drifts, drift, 0.0), 0))
                        tl.store(to + 5, tl.sum(tl.where(present, zero + 1.0, zero), 0))
                        tl.store(to + 6, tl.sum(tl.where(drifts, zero + 1.0, zero), 0))
                        tl.store(to + 7, tl.sum(count, 0))
                    wanted += stride
                    window += 1
                if r + 1 < last:
                    x, kept = _entries(series, base + length + r, row_stride, column, inside, null, HAS_NULL)
                    bad = bad | (kept & (tl.abs(x) == float("inf")))
                    own_c = tl.where(kept & (found == 0), x, own_c)
                    found = found | kept
                    value = tl.where(kept, x - c, 0.0)
                    own = tl.where(kept, x - own_c, 0.0)
                    place = (r + 1).to(tl.float64)
                    opened = kept & (previous == 0)
                    closed = (kept == 0) & previous
                    e += tl.where(opened, value, 0.0) + tl.where(closed, d, 0.0)
                    own_e += tl.where(opened, own, 0.0) + tl.where(closed, own_d, 0.0)
                    s += value
                    s2 += value * value
                    q += value * place
                    p += value * d
                    d = value
                    own_s += own
                    own_s2 += own * own
                    own_q += own * place
                    own_p += own * own_d
                    own_d = own
                    n += tl.where(kept, 1.0, 0.0)
                    n1 += tl.where(kept, place, 0.0)
                    n2 += tl.where(kept, place * place, 0.0)
                    np += tl.where(kept & previous, 1.0, 0.0)
                    previous = kept
                    at = (r + 1) * BLOCK_NODE
                    tl.store(total + plane + at, 0.0 - s)
                    tl.store(entries + plane + at, 0.0 - n)
                    tl.store(own_total + at, own_s)
                r += 1
            # The next group overwrites what this one's last windows read.
            tl.debug_barrier()
        group += tl.num_programs(1)
    if tl.max(bad.to(tl.int32), 0) > 0:
        tl.store(infinite, True)


def window_stats(
    series: torch.Tensor,
    history: int,
    horizon: int,
    stride: int,
    phase: int,
    null_value: float | None,
    inverse_std: torch.Tensor,
    per_node: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As stprune.reference.window_stats.window_stats; the same sums in another order."""
    rows, columns = series.shape
    length = history + horizon
    windows = 0 if rows < length else (rows - length) // stride + 1
    spans = -(-columns // SPAN)
    infinite = torch.zeros(1, dtype=torch.bool, device=series.device)
    if per_node:
        out = torch.empty((6, windows, columns), dtype=torch.float32, device=series.device)
    else:
        out = torch.empty((spans, windows, NUM_SUMS), dtype=torch.float64, device=series.device)
    if out.numel() == 0:
        return out, infinite
    if columns > 1 and series.stride(1) != 1:
        series = series.contiguous()
    blocks = -(-columns // BLOCK_NODE)
    groups = (phase + (windows - 1) * stride) // length + 1
    program_bytes = 8 * NUM_ARRAYS * length * BLOCK_NODE
    programs = max(1, min(MOST_PROGRAMS, SCRATCH_BYTES // program_bytes) // blocks)
    lanes = min(groups, programs)
    scratch = torch.empty(blocks * lanes * program_bytes // 8, dtype=torch.float64, device=series.device)
    partial = out if per_node else torch.empty((blocks, windows, NUM_SUMS), dtype=torch.float64, device=series.device)
    _window_stats_kernel[(blocks, lanes)](
        series,
        inverse_std if horizon else torch.zeros_like(inverse_std),
        scratch,
        partial,
        out,
        infinite,
        0.0 if null_value is None else null_value,
        series.stride(0),
        columns,
        windows,
        groups,
        length,
        history,
        stride,
        phase,
        PER_NODE=per_node,
        HAS_NULL=null_value is not None,
        BLOCK_NODE=BLOCK_NODE,
        NUM_ARRAYS=NUM_ARRAYS,
        **OPTIONS,
    )
    if not per_node:
        for span, blocks_of_span in enumerate(partial.split(SPAN // BLOCK_NODE)):
            torch.sum(blocks_of_span, 0, out=out[span])
    return out, infinite
