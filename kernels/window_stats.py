"""window_stats on the GPU: windows as a suffix of one block of rows and a prefix of the next, nothing ever subtracted."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LANES = 32
OPTIONS = {"num_warps": 1, "maxnreg": 255}
MOST_TILES = 4
PROGRAMS = 132 * 16
SCRATCH_BYTES = 1 << 28
STEP = 8
GAPPY_STEP = 4
SPAN = 4096
NUM_SUMS = 8


@triton.jit
def _read(series, row, row_stride, there, null, HAS_NULL: tl.constexpr, GAPS: tl.constexpr):
    """A row's values in float64 and which of them are valid."""
    raw = tl.load(series + row * row_stride, mask=there, other=0.0)
    kept = there
    if GAPS:
        kept = kept & (raw == raw)
        if HAS_NULL:
            kept = kept & (raw != null)
    return raw.to(tl.float64), kept


@triton.jit
def _add(state, x, kept, centre, GAPS: tl.constexpr):
    """Sums with one more row at their open end, about `centre`.

    A state is the row's value and whether it is valid; sums of values, of their squares, of products of neighbours, of values
    times their distance from the open end; with gaps also the sum of both values of every pair of neighbours, and of entries,
    pairs, distances and their squares how many.
    """
    value = tl.where(kept, x - centre, 0.0)
    s = state[2]
    new = (value, kept, s + value, state[3] + value * value, state[4] + value * state[0], state[5] + s)
    if GAPS:
        pair = kept & state[1]
        n, n1 = state[7], state[9]
        both = state[6] + tl.where(pair, value + state[0], 0.0)
        new = new + (both, n + tl.where(kept, 1.0, 0.0), state[8] + tl.where(pair, 1.0, 0.0), n1 + n, state[10] + (n1 + n1) + n)
    return new


@triton.jit
def _empty(LANES: tl.constexpr, FIELDS: tl.constexpr):
    zero = tl.zeros([LANES], tl.float64)
    return (zero, zero != 0.0) + (zero,) * FIELDS


@triton.jit
def _inverse(x, WIDE: tl.constexpr):
    """1 / x to 1e-12 for positive numbers that squares of float32 add up to: float32's quotient and one step of Newton's."""
    if WIDE:
        return 1.0 / x
    bits = x.to(tl.int64, bitcast=True)
    mantissa = (((bits >> 29) & 0x7FFFFF) | 0x3F800000).to(tl.int32).to(tl.float32, bitcast=True)
    start = (1.0 / mantissa).to(tl.float64).to(tl.int64, bitcast=True)
    start = (start - (bits & 0x7FF0000000000000) + 0x3FF0000000000000).to(tl.float64, bitcast=True)
    return start + start * (1.0 - x * start)


@triton.jit
def _group(
    series,  # at the group's first row
    inverse_std,
    scratch,
    out,  # at the group's first window
    column,
    num_columns,
    tiles,
    row_stride,
    first,
    last,
    step,
    length,
    history,
    num_windows,
    null,
    PER_NODE: tl.constexpr,
    HAS_NULL: tl.constexpr,
    DRIFT: tl.constexpr,
    GAPS: tl.constexpr,
    STEP: tl.constexpr,
    LANES: tl.constexpr,
):
    """The windows that begin in rows first, first + step, ... < last of a group, of all columns of the program."""
    WIDE: tl.constexpr = series.dtype.element_ty == tl.float64
    FIELDS: tl.constexpr = 9 if GAPS else 4
    SUMS: tl.constexpr = 8 if GAPS else 5
    zero = tl.zeros([LANES], tl.float64)
    no = zero != 0.0
    blocks = (length + STEP - 1) // STEP
    # Of each tile: the sums of suffixes at the ends of blocks; those up to the history's end at the blocks' beginnings; the
    # prefix as far as it has come, and the two centres.
    cuts = blocks * FIELDS * LANES
    running = cuts + blocks * 2 * LANES
    centres = running + FIELDS * LANES
    tile_size = centres + 2 * LANES
    span = (length - 1).to(tl.float64)
    size = length.to(tl.float64)

    measurable = zero
    tile = tiles * 0
    while tile < tiles:
        inside = column + tile * LANES < num_columns
        measurable += tl.where(tl.load(inverse_std + column + tile * LANES, mask=inside, other=0.0) > 0.0, 1.0, 0.0)
        at = series + tile * LANES
        saved = scratch + tile * tile_size
        state = _empty(LANES, FIELDS)
        c, _ = _read(at, length - 1, row_stride, inside, null, HAS_NULL, GAPS)
        block = blocks - 1
        if DRIFT:
            end = (length - history) // STEP
            if end * STEP == length - history:
                tl.store(saved + cuts + end * 2 * LANES, zero)
                tl.store(saved + cuts + end * 2 * LANES + LANES, zero)
        while block >= 0:
            for i in tl.static_range(FIELDS):
                tl.store(saved + (block * FIELDS + i) * LANES, state[i + 2])
            if GAPS or block > 0:
                for i in tl.static_range(STEP):
                    row = block * STEP + (STEP - 1 - i)
                    there = inside & (row >= first) & (row < length)
                    x, kept = _read(at, row, row_stride, there, null, HAS_NULL, GAPS)
                    if GAPS:
                        c = tl.where(kept & (state[7] == 0.0), x, c)
                    state = _add(state, x, kept, c, GAPS)
                    if DRIFT:
                        cut = (row - history) // STEP
                        stored = (row >= history) & (row < length) & (row - history == cut * STEP)
                        tl.store(saved + cuts + cut * 2 * LANES, state[2], mask=inside & stored)
                        if GAPS:
                            tl.store(saved + cuts + cut * 2 * LANES + LANES, state[7], mask=inside & stored)
            block -= 1
        for i in tl.static_range(FIELDS):
            tl.store(saved + running + i * LANES, zero)
        tl.store(saved + centres, c)
        tl.store(saved + centres + LANES, zero)
        tile += 1

    block = tiles * 0
    while block * STEP < last:
        begin = block * STEP
        places = ()
        for i in tl.static_range(STEP):
            r = begin + i - first
            place = r // step
            places = places + (tl.where((r >= 0) & (begin + i < last) & (place * step == r), place, -1),)
        sums = ((zero,) * SUMS,) * STEP
        tile = tiles * 0
        while tile < tiles:
            inside = column + tile * LANES < num_columns
            scale = tl.load(inverse_std + column + tile * LANES, mask=inside, other=0.0)
            at = series + tile * LANES
            saved = scratch + tile * tile_size
            c = tl.load(saved + centres)
            own = tl.load(saved + centres + LANES)

            # Suffixes at the rows of this block, from the sums at its end.
            row = begin + STEP
            x, kept = _read(at, row, row_stride, inside & (row < length), null, HAS_NULL, GAPS)
            state = (tl.where(kept, x - c, 0.0), kept)
            for i in tl.static_range(FIELDS):
                state = state + (tl.load(saved + (block * FIELDS + i) * LANES),)
            lefts = ()
            for i in tl.static_range(STEP):
                row = begin + (STEP - 1 - i)
                there = inside & (row >= first) & (row < length)
                x, kept = _read(at, row, row_stride, there, null, HAS_NULL, GAPS)
                state = _add(state, x, kept, c, GAPS)
                lefts = (state,) + lefts

            # The prefix up to this block's first row.
            x, kept = _read(at, length + begin - 1, row_stride, inside, null, HAS_NULL, GAPS)
            if GAPS:
                pivot = kept
                if begin > 0:
                    _, pivot = _read(at, length - 1, row_stride, inside, null, HAS_NULL, GAPS)
                else:
                    kept = no
                _, joined = _read(at, length, row_stride, inside & (last > 1), null, HAS_NULL, GAPS)
                joined = joined & pivot
                state = (tl.where(kept, x - own, 0.0), kept)
            else:
                state = (tl.where(kept, x - c, 0.0), kept)
            for i in tl.static_range(FIELDS):
                state = state + (tl.load(saved + running + i * LANES),)
            if DRIFT:
                # What of a history lies behind its end, about the first centre; with gaps before it, about the second.
                behind = begin + history > length
                cut = saved + cuts + block * 2 * LANES
                tail = tl.load(cut)
                if GAPS:
                    tail_count = tl.load(cut + LANES)
                    more_count = tl.where(behind, tail_count, 0.0)
                    more = tl.where(behind, tail, 0.0)
                    tail_count = tl.where(behind, 0.0, tail_count)
                    tail = tl.where(behind, 0.0, tail)

            total = ()
            for i in tl.static_range(STEP):
                left = lefts[i]
                if GAPS:
                    left_n, right_n = left[7], state[7]
                    shared = left_n > 0.0
                    shift = tl.where(shared & (right_n > 0.0), own - c, 0.0)
                    count = left_n + right_n
                    sum_ = left[2] + state[2] + right_n * shift
                    squares = left[3] + state[3] + shift * (state[2] + state[2] + right_n * shift)
                    joint = tl.where(joined & (right_n > 0.0) & shared, 1.0, 0.0)
                    pairs = left[8] + state[8] + joint
                    both = left[6] + state[6] + shift * (state[8] + state[8] + joint)
                    products = left[4] + state[4] + shift * (state[6] + shift * state[8])
                    places_sum = span * right_n - state[9]
                    moments = left[5] + (span * state[2] - state[5]) + shift * places_sum
                    place_sum = left[9] + places_sum
                    place_square = left[10] + (span * (span * right_n - (state[9] + state[9])) + state[10])
                    inverse = 1.0 / tl.maximum(count, 1.0)
                    mean = sum_ * inverse
                    deviation = tl.maximum(squares - sum_ * mean, 0.0)
                    covariance = products - mean * (both - mean * pairs)
                    middle = place_sum * inverse
                    spread = place_square - place_sum * middle
                    several = count > 1.0
                    trend = tl.where(several, (moments - sum_ * middle) / tl.where(several, spread, 1.0), 0.0)
                    present = count > 0.0
                    level = tl.where(shared, c, own) + mean
                else:
                    sum_ = left[2] + state[2]
                    mean = sum_ * (1.0 / size)
                    deviation = (left[3] + state[3]) - sum_ * mean
                    both = (sum_ + sum_) - (left[0] + state[0])
                    covariance = (left[4] + state[4]) - mean * (both - mean * span)
                    moments = left[5] + (span * state[2] - state[5])
                    trend = (moments - sum_ * (0.5 * span)) * (12.0 / tl.maximum(size * (size * size - 1.0), 1.0))
                    inverse = 1.0 / size
                    present = inside
                    level = c + mean
                    count = tl.where(inside, size, 0.0)
                varies = deviation > 0.0
                memory = tl.where(varies, covariance * _inverse(tl.where(varies, deviation, 1.0), WIDE), 0.0)
                drifts = no
                drift = zero
                if DRIFT:
                    if GAPS:
                        past = (left[2] - tail) + (more + more_count * shift)
                        past_n = (left_n - tail_count) + more_count
                        rest_n = count - past_n
                        drifts = (past_n > 0.0) & (rest_n > 0.0) & (scale > 0.0)
                        gap = (sum_ - past) / tl.maximum(rest_n, 1.0) - past / tl.maximum(past_n, 1.0)
                    else:
                        past = left[2] - tail
                        to_rest = 1.0 / (size - history)
                        drifts = scale > 0.0
                        gap = sum_ * to_rest - past * (to_rest + 1.0 / history)
                    drift = tl.abs(gap) * scale
                if PER_NODE:
                    nan = float("nan")
                    to = out + places[i] * num_columns.to(tl.int64) + tile * LANES
                    plane = num_windows.to(tl.int64) * num_columns
                    wanted = inside & (places[i] >= 0)
                    tl.store(to, tl.where(present, level, nan).to(tl.float32), mask=wanted)
                    tl.store(to + plane, tl.where(present, deviation * inverse, nan).to(tl.float32), mask=wanted)
                    tl.store(to + 2 * plane, tl.where(present, trend, nan).to(tl.float32), mask=wanted)
                    tl.store(to + 3 * plane, tl.where(present, memory, nan).to(tl.float32), mask=wanted)
                    tl.store(to + 4 * plane, tl.where(drifts, drift, nan).to(tl.float32), mask=wanted)
                    tl.store(to + 5 * plane, (1.0 - count / size).to(tl.float32), mask=wanted)
                else:
                    a = sums[i]
                    new = (
                        a[0] + tl.where(present, level, 0.0),
                        a[1] + deviation * inverse,
                        a[2] + trend,
                        a[3] + memory,
                        a[4] + tl.where(drifts, drift, 0.0),
                    )
                    if GAPS:
                        new = new + (
                            a[5] + tl.where(present, 1.0, 0.0),
                            a[6] + tl.where(drifts, 1.0, 0.0),
                            a[7] + count,
                        )
                    total = total + (new,)

                if DRIFT and i + 1 < STEP:
                    row = begin + i + history
                    there = inside & (row >= first) & (begin + i + 1 < last)
                    x, kept = _read(at, row, row_stride, there, null, HAS_NULL, GAPS)
                    if GAPS:
                        near, far = kept & (row < length), kept & (row >= length)
                        tail -= tl.where(near, x - c, 0.0)
                        tail_count -= tl.where(near, 1.0, 0.0)
                        more += tl.where(far, x - own, 0.0)
                        more_count += tl.where(far, 1.0, 0.0)
                    else:
                        tail -= tl.where(kept, x - c, 0.0)
                row = length + begin + i
                x, kept = _read(at, row, row_stride, inside & (begin + i + 1 < last), null, HAS_NULL, GAPS)
                if GAPS:
                    own = tl.where(kept & (state[7] == 0.0), x, own)
                    state = _add(state, x, kept, own, GAPS)
                else:
                    state = _add(state, x, kept, c, GAPS)
                if DRIFT:
                    end = (row + 1 - history) // STEP
                    stored = inside & (end * STEP == row + 1 - history) & (end < blocks)
                    tl.store(saved + cuts + end * 2 * LANES, state[2] if GAPS else 0.0 - state[2], mask=stored)
                    if GAPS:
                        tl.store(saved + cuts + end * 2 * LANES + LANES, state[7], mask=stored)
            for i in tl.static_range(FIELDS):
                tl.store(saved + running + i * LANES, state[i + 2])
            tl.store(saved + centres + LANES, own)
            if not PER_NODE:
                sums = total
            tile += 1
        if not PER_NODE:
            for i in tl.static_range(STEP):
                if places[i] >= 0:
                    to = out + places[i] * 8
                    for j in tl.static_range(SUMS):
                        tl.store(to + j, tl.sum(sums[i][j], 0))
                    if not GAPS:
                        width = tl.minimum(tiles * LANES, num_columns - tl.min(column, 0))
                        tl.store(to + 5, width.to(tl.float64))
                        tl.store(to + 6, tl.sum(measurable, 0) if DRIFT else 0.0)
                        tl.store(to + 7, width.to(tl.float64) * size)
        block += 1


@triton.jit
def _scan(series, column, num_columns, tiles, row_stride, first, last_row, null, infinite, HAS_NULL: tl.constexpr, LANES: tl.constexpr):
    """Whether an entry of some rows is missing or infinite; says so where a valid one is infinite."""
    strange = tl.zeros([LANES], tl.int32) != 0
    endless = strange
    tile = tiles * 0
    while tile < tiles:
        inside = column + tile * LANES < num_columns
        row = first
        while row < last_row:
            for i in tl.static_range(8):
                there = inside & (row + i < last_row)
                raw = tl.load(series + (row + i) * row_stride + tile * LANES, mask=there, other=0.0)
                odd = there & ((tl.abs(raw) < float("inf")) == 0)
                endless = endless | (odd & (raw == raw))
                if HAS_NULL:
                    odd = odd | (there & (raw == null))
                strange = strange | odd
            row += 8
        tile += 1
    tl.store(infinite + tl.zeros([LANES], tl.int32), endless, mask=endless)
    return tl.max(strange.to(tl.int32), 0) != 0


@triton.jit(do_not_specialize=["num_columns", "num_windows", "num_groups", "tiles", "length", "history", "stride", "phase", "slots"])
def _window_stats_kernel(
    series,  # [rows, columns]
    inverse_std,  # [columns] float64
    scratch,  # [programs, tiles, slots, LANES] float64
    out,  # [column programs, windows, 8] float64; per node [6, windows, columns] float32
    infinite,  # [1] bool
    null: tl.float64,
    row_stride,
    num_columns,
    num_windows,
    num_groups,
    tiles,
    length,
    history,
    stride,
    phase,
    slots,
    PER_NODE: tl.constexpr,
    HAS_NULL: tl.constexpr,
    DRIFT: tl.constexpr,
    STEP: tl.constexpr,
    GAPPY_STEP: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    null = tl.full([1], null, series.dtype.element_ty)
    row_stride = row_stride.to(tl.int64)
    stride = stride.to(tl.int64)
    strips = (num_columns + tiles * LANES - 1) // (tiles * LANES)
    own = scratch + tl.program_id(0).to(tl.int64) * tiles * slots * LANES + lane
    item = tl.program_id(0).to(tl.int64)
    while item < num_groups.to(tl.int64) * strips:
        strip = item % strips
        group = item // strips
        base = group * length - phase
        first_window = tl.maximum(base + stride - 1, 0) // stride
        stop_window = tl.minimum((base + length + stride - 1) // stride, num_windows)
        if first_window < stop_window:
            first = (first_window * stride - base).to(tl.int32)
            last = ((stop_window - 1) * stride - base + 1).to(tl.int32)
            step = tl.minimum(stride, length).to(tl.int32)
            column = strip * tiles * LANES + lane
            start = series + base * row_stride + column
            strange = _scan(
                start, column, num_columns, tiles, row_stride, first, length + last - 1, null, infinite, HAS_NULL, LANES
            )
            if PER_NODE:
                to = out + first_window * num_columns + column
            else:
                to = out + (strip * num_windows + first_window) * 8
            if strange:
                _group(
                    start, inverse_std, own, to, column, num_columns, tiles, row_stride, first, last, step, length, history,
                    num_windows, null, PER_NODE, HAS_NULL, DRIFT, True, GAPPY_STEP, LANES,
                )  # fmt: skip
            else:
                _group(
                    start, inverse_std, own, to, column, num_columns, tiles, row_stride, first, last, step, length, history,
                    num_windows, null, PER_NODE, HAS_NULL, DRIFT, False, STEP, LANES,
                )  # fmt: skip
        item += tl.num_programs(0)


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
    groups = (phase + (windows - 1) * stride) // length + 1
    tiles = MOST_TILES
    while tiles > 1 and (-(-columns // (tiles * LANES)) * groups < PROGRAMS or tiles * LANES > SPAN):
        tiles //= 2
    strips = -(-columns // (tiles * LANES))
    step, gappy_step = (min(most, 1 << (history.bit_length() - 1)) for most in (STEP, GAPPY_STEP))
    slots = 11 * (-(-length // gappy_step) + 1)
    program_size = tiles * slots * LANES
    programs = max(1, min(strips * groups, PROGRAMS, SCRATCH_BYTES // (8 * program_size)))
    scratch = torch.empty(programs * program_size, dtype=torch.float64, device=series.device)
    partial = out if per_node else torch.empty((strips, windows, NUM_SUMS), dtype=torch.float64, device=series.device)
    _window_stats_kernel[(programs,)](
        series,
        inverse_std,
        scratch,
        partial,
        infinite,
        0.0 if null_value is None else null_value,
        series.stride(0),
        columns,
        windows,
        groups,
        tiles,
        length,
        history,
        stride,
        phase,
        slots,
        PER_NODE=per_node,
        HAS_NULL=null_value is not None,
        DRIFT=horizon > 0,
        STEP=step,
        GAPPY_STEP=gappy_step,
        LANES=LANES,
        **OPTIONS,
    )
    if not per_node:
        for span, strips_of_span in enumerate(partial.split(SPAN // (tiles * LANES))):
            torch.sum(strips_of_span, 0, out=out[span])
    return out, infinite
