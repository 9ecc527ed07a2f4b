"""window_stats on the GPU: windows as a suffix of one block of rows and a prefix of the next, nothing ever subtracted."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LANES = 32
OPTIONS = {"num_warps": 1, "maxnreg": 255}
MOST_TILES = 4
COLUMNS_A_TILE = 256
PROGRAMS = 132 * 16
SCRATCH_BYTES = 1 << 28
STEP = 8
GAPPY_STEP = 4
SPAN = 4096
NUM_SUMS = 8
# Rows of a block of moments, as in the reference, and how many are read at a time.
MOMENT_ROWS = 1024
MOMENT_OPTIONS = {"TILE": 64, "num_warps": 8}


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
def _add(state, x, kept, centre, follows, GAPS: tl.constexpr):
    """Sums with one more row at their open end, about `centre`; `follows` says whether a row of this side lies before it.

    A state is the value of the row at the open end and whether it is valid; sums of values, of their squares, of products of
    neighbours, of values times their distance from the open end. With gaps also the sum of the values beside a gap, once for
    each gap, and of entries, of pairs of neighbours, of distances and of their squares.
    """
    value = tl.where(kept, x - centre, 0.0)
    last, before, s = state[0], state[1], state[2]
    new = (value, kept, s + value, tl.fma(value, value, state[3]), tl.fma(value, last, state[4]), state[5] + s)
    if GAPS:
        n, n1 = state[7], state[9]
        beside = tl.where(kept & (before == 0) & follows, value, tl.where((kept == 0) & before, last, 0.0))
        one = tl.where(kept, 1.0, 0.0)
        new += (state[6] + beside, n + one, state[8] + tl.where(before, one, 0.0), n1 + n, state[10] + (n1 + n1) + n)
    return new


@triton.jit
def _inverse(x, WIDE: tl.constexpr):
    """1 / x to 1e-12, of a sum of squares of float32 above 0: float32's quotient and one step of Newton's method."""
    if WIDE:
        return 1.0 / x
    bits = x.to(tl.int64, bitcast=True)
    mantissa = (((bits >> 29) & 0x7FFFFF) | 0x3F800000).to(tl.int32).to(tl.float32, bitcast=True)
    near = (1.0 / mantissa).to(tl.float64).to(tl.int64, bitcast=True)
    near = (near - (bits & 0x7FF0000000000000) + 0x3FF0000000000000).to(tl.float64, bitcast=True)
    return tl.fma(near, tl.fma(-x, near, 1.0), near)


@triton.jit
def _load_state(saved, there, value, kept, SAVED: tl.constexpr, FIELDS: tl.constexpr, LANES: tl.constexpr):
    """A state whose sums were saved; they are 0 where nothing is there."""
    state = (value, kept)
    for i in tl.static_range(SAVED):
        state += (tl.load(saved + i * LANES, mask=there, other=0.0),)
    return state + (tl.zeros([LANES], tl.float64),) * (FIELDS - SAVED)


@triton.jit
def _save_state(saved, there, state, SAVED: tl.constexpr, LANES: tl.constexpr):
    for i in tl.static_range(SAVED):
        tl.store(saved + i * LANES, state[i + 2], mask=there)


@triton.jit
def _group(
    series,  # at the group's first row
    inverse_std,
    scratch,  # the program's
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
    """The windows that begin in rows first, first + step, ... < last of a group, in all columns of the program.

    A window without a gap has the same bits with GAPS and without: the same sums in the same order, products fused by hand.
    """
    WIDE: tl.constexpr = series.dtype.element_ty == tl.float64
    FIELDS: tl.constexpr = 9 if GAPS else 4
    SUMS: tl.constexpr = 8 if GAPS else 5
    zero = tl.zeros([LANES], tl.float64)
    no = zero != 0.0
    blocks = (length + STEP - 1) // STEP
    # Kept of each tile: the suffixes behind each block of STEP rows; what lies behind the end of the history of the window
    # that begins with the block; the prefix as far as it has come, about both centres, and these.
    cuts = blocks * FIELDS * LANES
    running = cuts + blocks * 3 * LANES
    running_own = running + FIELDS * LANES
    centres = running_own + 5 * LANES
    tile_size = centres + 2 * LANES
    span = (length - 1).to(tl.float64)
    size = length.to(tl.float64)
    # Of windows without a gap.
    full_inverse = 1.0 / size
    full_spread = 1.0 / tl.maximum(size * (size * size - 1.0) / 12.0, 0.5)
    full_rest = 1.0 / tl.maximum(size - history.to(tl.float64), 1.0)
    full_parts = full_rest + 1.0 / history.to(tl.float64)

    # Suffixes, from the group's last row backwards, about its last valid value.
    measurable = zero
    tile = tiles * 0
    while tile < tiles:
        inside = column + tile * LANES < num_columns
        measurable += tl.where(tl.load(inverse_std + column + tile * LANES, mask=inside, other=0.0) > 0.0, 1.0, 0.0)
        at = series + tile * LANES
        saved = scratch + tile * tile_size
        state = (zero, no) + (zero,) * FIELDS
        c, _ = _read(at, length - 1, row_stride, inside, null, HAS_NULL, GAPS)
        block = blocks - 1
        while block >= 0:
            _save_state(saved + block * FIELDS * LANES, inside & (block < blocks - 1), state, FIELDS, LANES)
            # Nothing follows from the first block's own rows but where the last valid value is.
            if GAPS or block > 0:
                for i in tl.static_range(STEP):
                    row = block * STEP + (STEP - 1 - i)
                    x, kept = _read(at, row, row_stride, inside & (row >= first) & (row < length), null, HAS_NULL, GAPS)
                    if GAPS:
                        c = tl.where(kept & (state[7] == 0.0), x, c)
                    state = _add(state, x, kept, c, row < length - 1, GAPS)
                    if DRIFT:
                        cut = (row - history) // STEP
                        stored = inside & (row >= history) & (row < length) & (row - history == cut * STEP)
                        tl.store(saved + cuts + cut * 3 * LANES, state[2], mask=stored)
                        if GAPS:
                            tl.store(saved + cuts + (cut * 3 + 1) * LANES, state[7], mask=stored)
            block -= 1
        if DRIFT:
            cut = (length - history) // STEP
            stored = inside & (cut * STEP == length - history) & (cut < blocks)
            for i in tl.static_range(3):
                tl.store(saved + cuts + (cut * 3 + i) * LANES, zero, mask=stored)
        if GAPS:
            tl.store(saved + centres, c, mask=inside)
        tile += 1

    block = tiles * 0
    while block * STEP < last:
        begin = block * STEP
        places = ()
        for i in tl.static_range(STEP):
            r = begin + i - first
            place = r // step
            places += (tl.where((r >= 0) & (begin + i < last) & (place * step == r), place, -1),)
        sums = ((zero,) * SUMS,) * STEP
        tile = tiles * 0
        while tile < tiles:
            inside = column + tile * LANES < num_columns
            scale = tl.load(inverse_std + column + tile * LANES, mask=inside, other=0.0)
            at = series + tile * LANES
            saved = scratch + tile * tile_size
            if GAPS:
                c = tl.load(saved + centres, mask=inside, other=0.0)
                own_c = tl.load(saved + centres + LANES, mask=inside & (begin > 0), other=0.0)
            else:
                c, _ = _read(at, length - 1, row_stride, inside, null, HAS_NULL, GAPS)

            row = begin + STEP
            x, kept = _read(at, row, row_stride, inside & (row < length), null, HAS_NULL, GAPS)
            value = tl.where(kept, x - c, 0.0)
            there = inside & (block < blocks - 1)
            state = _load_state(saved + block * FIELDS * LANES, there, value, kept, FIELDS, FIELDS, LANES)
            lefts = ()
            for i in tl.static_range(STEP):
                row = begin + (STEP - 1 - i)
                x, kept = _read(at, row, row_stride, inside & (row >= first) & (row < length), null, HAS_NULL, GAPS)
                state = _add(state, x, kept, c, row < length - 1, GAPS)
                lefts = (state,) + lefts

            # Prefixes of the next group, about the same centre, and about their own for windows with nothing before them.
            x, kept = _read(at, length + begin - 1, row_stride, inside, null, HAS_NULL, GAPS)
            there = inside & (begin > 0)
            state = _load_state(saved + running, there, tl.where(kept, x - c, 0.0), kept, FIELDS, FIELDS, LANES)
            if GAPS:
                # Where the group's last row is valid, no window needs a centre of its own.
                value = tl.where(kept & there, x - own_c, 0.0)
                own = _load_state(saved + running_own, there, value, kept, 5, FIELDS, LANES)
            if DRIFT:
                # Sums over what lies behind the end of the history in the group, less what of the history lies in the next.
                cut = saved + cuts + block * 3 * LANES
                tail = tl.load(cut, mask=inside, other=0.0)
                if GAPS:
                    tail_n = tl.load(cut + LANES, mask=inside, other=0.0)
                    own_past = tl.where(begin + history > length, tl.load(cut + 2 * LANES, mask=inside, other=0.0), 0.0)
            total = ()
            for i in tl.static_range(STEP):
                left = lefts[i]
                sum_ = left[2] + state[2]
                squares = left[3] + state[3]
                products = left[4] + state[4]
                moments = left[5] + tl.fma(span, state[2], -state[5])
                ends = left[0] + state[0]
                centre = c
                count, pairs, middle, present, several = size, span, 0.5 * span, inside, inside
                inverse, inverse_spread = full_inverse, full_spread
                if DRIFT:
                    past, drifts = left[2] - tail, scale > 0.0
                    to_rest, both_parts = full_rest, full_parts
                if GAPS:
                    shared = left[7] > 0.0
                    sum_ = tl.where(shared, sum_, own[2])
                    squares = tl.where(shared, squares, own[3])
                    products = tl.where(shared, products, own[4])
                    moments = tl.where(shared, moments, tl.fma(span, own[2], -own[5]))
                    ends = tl.where(shared, ends + (left[6] + state[6]), own[0] + own[6])
                    centre = tl.where(shared, c, own_c)
                    count = left[7] + state[7]
                    pairs = left[8] + state[8]
                    places_of_next = span * state[7] - state[9]
                    place_sum = left[9] + places_of_next
                    place_square = left[10] + (span * (places_of_next - state[9]) + state[10])
                    present, several = count > 0.0, count > 1.0
                    inverse = 1.0 / tl.maximum(count, 1.0)
                    middle = place_sum / tl.maximum(count, 1.0)
                    inverse_spread = 1.0 / tl.where(several, place_square - place_sum * middle, 0.5)
                    if DRIFT:
                        past = tl.where(shared, past, own_past)
                        past_n = left[7] - tail_n
                        drifts = drifts & (past_n > 0.0) & (count > past_n)
                        to_rest = 1.0 / tl.maximum(count - past_n, 1.0)
                        both_parts = to_rest + 1.0 / tl.maximum(past_n, 1.0)
                mean = sum_ * inverse
                deviation = tl.maximum(tl.fma(-sum_, mean, squares), 0.0)
                covariance = tl.fma(-mean, tl.fma(-mean, pairs, (sum_ + sum_) - ends), products)
                varies = deviation > 0.0
                shrink = tl.where(varies, _inverse(tl.where(varies, deviation, 1.0), WIDE), 0.0)
                slope = tl.fma(-sum_, middle, moments)
                flat = tl.where(several, inverse_spread, 0.0)
                gap, weight = zero, zero
                if DRIFT:
                    gap = tl.abs(tl.fma(sum_, to_rest, -(past * both_parts)))
                    weight = tl.where(drifts, scale, 0.0)
                if PER_NODE:
                    nan = float("nan")
                    to = out + places[i] * num_columns.to(tl.int64) + tile * LANES
                    plane = num_windows.to(tl.int64) * num_columns
                    wanted = inside & (places[i] >= 0)
                    missing = tl.where(inside, 1.0 - count / size, 0.0)
                    tl.store(to, tl.where(present, centre + mean, nan).to(tl.float32), mask=wanted)
                    tl.store(to + plane, tl.where(present, deviation * inverse, nan).to(tl.float32), mask=wanted)
                    tl.store(to + 2 * plane, tl.where(present, slope * flat, nan).to(tl.float32), mask=wanted)
                    tl.store(to + 3 * plane, tl.where(present, covariance * shrink, nan).to(tl.float32), mask=wanted)
                    tl.store(to + 4 * plane, tl.where(weight > 0.0, gap * weight, nan).to(tl.float32), mask=wanted)
                    tl.store(to + 5 * plane, missing.to(tl.float32), mask=wanted)
                else:
                    a = sums[i]
                    new = (
                        a[0] + tl.where(present, centre + mean, 0.0),
                        tl.fma(deviation, inverse, a[1]),
                        tl.fma(slope, flat, a[2]),
                        tl.fma(covariance, shrink, a[3]),
                        tl.fma(gap, weight, a[4]),
                    )
                    if GAPS:
                        new += (
                            a[5] + tl.where(present, 1.0, 0.0),
                            a[6] + tl.where(weight > 0.0, 1.0, 0.0),
                            a[7] + count,
                        )
                    total += (new,)

                follows = begin + i + 1 < last
                if DRIFT:
                    row = begin + i + history
                    x, kept = _read(at, row, row_stride, inside & (row >= first) & follows, null, HAS_NULL, GAPS)
                    tail -= tl.where(kept, x - c, 0.0)
                    if GAPS:
                        tail_n -= tl.where(kept, 1.0, 0.0)
                        own_past += tl.where(kept & (row >= length), x - own_c, 0.0)
                row = length + begin + i
                x, kept = _read(at, row, row_stride, inside & follows, null, HAS_NULL, GAPS)
                if GAPS:
                    own_c = tl.where(kept & (state[7] == 0.0), x, own_c)
                    own = _add(own, x, kept, own_c, True, GAPS)
                state = _add(state, x, kept, c, True, GAPS)
                if DRIFT:
                    cut = (row + 1 - history) // STEP
                    stored = inside & (cut * STEP == row + 1 - history) & (cut < blocks)
                    tl.store(saved + cuts + cut * 3 * LANES, 0.0 - state[2], mask=stored)
                    if GAPS:
                        tl.store(saved + cuts + (cut * 3 + 1) * LANES, 0.0 - state[7], mask=stored)
                        tl.store(saved + cuts + (cut * 3 + 2) * LANES, own[2], mask=stored)
            there = inside & (begin + STEP < last)
            _save_state(saved + running, there, state, FIELDS, LANES)
            if GAPS:
                _save_state(saved + running_own, there, own, 5, LANES)
                tl.store(saved + centres + LANES, own_c, mask=there)
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
                        width = tl.minimum(tiles * LANES, num_columns - tl.min(column, 0)).to(tl.float64)
                        tl.store(to + 5, width)
                        tl.store(to + 6, tl.sum(measurable, 0) if DRIFT else 0.0)
                        tl.store(to + 7, width * size)
        block += 1


@triton.jit
def _scan(
    series, column, num_columns, tiles, row_stride, first, last_row, null, infinite, HAS_NULL: tl.constexpr, LANES: tl.constexpr
):
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


@triton.jit(
    do_not_specialize=["num_columns", "num_windows", "num_groups", "tiles", "length", "history", "stride", "phase", "slots"]
)
def _window_stats_kernel(
    series,  # [rows, columns]
    inverse_std,  # [columns] float64
    scratch,  # [programs, tiles, slots, LANES] float64
    out,  # [column programs, windows, 8] float64; per node [6, windows, columns] float32
    infinite,  # [1] bool
    gappy,  # [groups * strips] bool: where an entry is missing; out, with GAPS in
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
    GAPS: tl.constexpr,
    STEP: tl.constexpr,
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
            if GAPS:
                wanted = tl.load(gappy + item)
            else:
                strange = _scan(
                    start, column, num_columns, tiles, row_stride, first, length + last - 1, null, infinite, HAS_NULL, LANES
                )
                tl.store(gappy + item, strange)
                wanted = strange == 0
            if wanted:
                if PER_NODE:
                    to = out + first_window * num_columns + column
                else:
                    to = out + (strip * num_windows + first_window) * 8
                _group(
                    start, inverse_std, own, to, column, num_columns, tiles, row_stride, first, last, step, length, history,
                    num_windows, null, PER_NODE, HAS_NULL, DRIFT, GAPS, STEP, LANES,
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
    # By the columns alone: a window's sums must not depend on how many there are.
    tiles = min(MOST_TILES, 1 << (max(1, columns // COLUMNS_A_TILE).bit_length() - 1))
    strips = -(-columns // (tiles * LANES))
    gappy = torch.empty(strips * groups, dtype=torch.bool, device=series.device)
    partial = out if per_node else torch.empty((strips, windows, NUM_SUMS), dtype=torch.float64, device=series.device)
    wide = series.dtype == torch.float64
    for gaps, fields, most in ((False, 4, STEP), (True, 9, GAPPY_STEP)):
        # A block of windows ends before the history of its first one does.
        step = min(most // (1 + wide), 1 << (history.bit_length() - 1))
        slots = (fields + 3) * -(-length // step) + fields + 7
        programs = max(1, min(strips * groups, PROGRAMS, SCRATCH_BYTES // (8 * tiles * slots * LANES)))
        scratch = torch.empty(programs * tiles * slots * LANES, dtype=torch.float64, device=series.device)
        _window_stats_kernel[(programs,)](
            series,
            inverse_std,
            scratch,
            partial,
            infinite,
            gappy,
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
            GAPS=gaps,
            STEP=step,
            LANES=LANES,
            **OPTIONS,
        )
    if not per_node:
        for span, strips_of_span in enumerate(partial.split(SPAN // (tiles * LANES))):
            torch.sum(strips_of_span, 0, out=out[span])
    return out, infinite


@triton.jit(do_not_specialize=["num_rows", "num_columns"])
def _moments_kernel(
    series,  # [rows, columns]
    out,  # [blocks, 4, columns] float64
    null: tl.float64,
    row_stride,
    num_rows,
    num_columns,
    HAS_NULL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
):
    column = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    block = tl.program_id(1).to(tl.int64)
    inside = column < num_columns
    null = tl.full([1], null, series.dtype.element_ty)
    begin = block * BLOCK_ROWS
    stop = tl.minimum(begin + BLOCK_ROWS, num_rows)
    at = series + column
    # About each column's first valid value, which is in the first row but for gaps.
    centre = tl.full([LANES], float("nan"), tl.float64)
    searched = inside
    row = begin
    while (row < stop) & (tl.max(searched.to(tl.int32), 0) != 0):
        x, kept = _read(at, row, row_stride.to(tl.int64), searched, null, HAS_NULL, True)
        centre = tl.where(kept, x, centre)
        searched = searched & (kept == 0)
        row += 1
    count = tl.zeros([TILE, LANES], tl.int32)
    total = tl.zeros([TILE, LANES], tl.float64)
    square = tl.zeros([TILE, LANES], tl.float64)
    line = tl.arange(0, TILE)[:, None]
    row = begin
    while row < stop:
        there = inside[None, :] & (row + line < stop)
        x, kept = _read(at[None, :], row + line, row_stride.to(tl.int64), there, null, HAS_NULL, True)
        value = tl.where(kept, x - centre[None, :], 0.0)
        count += kept.to(tl.int32)
        total += value
        square += value * value
        row += TILE
    to = out + block * 4 * num_columns + column
    tl.store(to, tl.sum(count, 0).to(tl.float64), mask=inside)
    tl.store(to + num_columns, centre, mask=inside)
    tl.store(to + 2 * num_columns.to(tl.int64), tl.sum(total, 0), mask=inside)
    tl.store(to + 3 * num_columns.to(tl.int64), tl.sum(square, 0), mask=inside)


def node_moments(series: torch.Tensor, null_value: float | None) -> torch.Tensor:
    """As stprune.reference.window_stats.node_moments; the same sums in another order."""
    rows, columns = series.shape
    blocks = -(-rows // MOMENT_ROWS)
    out = torch.empty((blocks, 4, columns), dtype=torch.float64, device=series.device)
    if out.numel() == 0:
        return out
    if columns > 1 and series.stride(1) != 1:
        series = series.contiguous()
    _moments_kernel[(-(-columns // LANES), blocks)](
        series, out, 0.0 if null_value is None else null_value, series.stride(0), rows, columns,
        HAS_NULL=null_value is not None, BLOCK_ROWS=MOMENT_ROWS, LANES=LANES, **MOMENT_OPTIONS,
    )  # fmt: skip
    return out
