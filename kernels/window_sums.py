"""What window_stats adds up on the GPU: sums over suffixes and prefixes of rows, and the windows of a group made of them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def read(pointer, inside, null, HAS_NULL: tl.constexpr):
    """Values in float64, and which of them are valid."""
    raw = tl.load(pointer, mask=inside, other=0.0)
    kept = inside & (raw == raw)
    if HAS_NULL:
        kept = kept & (raw != null)
    return raw.to(tl.float64), kept


@triton.jit
def _read_row(series, row, usable, spare, row_stride, inside, null, HAS_NULL: tl.constexpr):
    """As `read`, of a row; of `spare` where it is none to be used, and then nothing counts as valid."""
    x, kept = read(series + tl.where(usable, row, spare) * row_stride, inside, null, HAS_NULL)
    return x, kept & usable


@triton.jit
def _distance(x, kept, centre, GAPS: tl.constexpr):
    """Of values from their centre, 0 of missing ones; without gaps that is up to the rows that are read."""
    return tl.where(kept, x - centre, 0.0) if GAPS else x - centre


@triton.jit
def _add(state, x, kept, centre, follows, GAPS: tl.constexpr):
    """Sums with one more row at their open end, about `centre`; `follows` says whether a row of this side lies before it.

    A state is the value of the row at the open end and whether it is valid; sums of values, of their squares, of products of
    neighbours, of values times their distance from the open end. With gaps also the sum of the values beside a gap, once for
    each gap, and of entries, of pairs of neighbours, of distances and of their squares.
    """
    value = _distance(x, kept, centre, GAPS)
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
def group_windows(
    series,  # at the group's first row
    inverse_std,
    scratch,  # the program's
    out,  # at the group's first window
    left_column,
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
    Returns whether an entry of the windows is missing or infinite, with GAPS whether one is infinite.
    """
    WIDE: tl.constexpr = series.dtype.element_ty == tl.float64
    FIELDS: tl.constexpr = 9 if GAPS else 4
    SUMS: tl.constexpr = 8 if GAPS else 5
    column = left_column + tl.arange(0, LANES)
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
    # Without gaps the group's last row stands for those that no window has: it is at distance 0 from the centre.
    spare = length - 1
    span = (length - 1).to(tl.float64)
    size = length.to(tl.float64)
    # Of windows without a gap.
    full_inverse = 1.0 / size
    full_spread = 1.0 / tl.maximum(size * (size * size - 1.0) / 12.0, 0.5)
    full_rest = 1.0 / tl.maximum(size - history.to(tl.float64), 1.0)
    full_parts = full_rest + 1.0 / history.to(tl.float64)

    # Suffixes, from the group's last row backwards, about its last valid value.
    found = no
    measurable = zero
    tile = tiles * 0
    while tile < tiles:
        inside = column + tile * LANES < num_columns
        measurable += tl.where(tl.load(inverse_std + column + tile * LANES, mask=inside, other=0.0) > 0.0, 1.0, 0.0)
        at = series + tile * LANES
        saved = scratch + tile * tile_size
        state = (zero, no) + (zero,) * FIELDS
        c, _ = read(at + spare * row_stride, inside, null, HAS_NULL)
        block = blocks - 1
        while block >= 0:
            _save_state(saved + block * FIELDS * LANES, inside & (block < blocks - 1), state, FIELDS, LANES)
            # Nothing follows from the first block's own rows but where the last valid value is.
            if GAPS or block > 0:
                for i in tl.static_range(STEP):
                    row = block * STEP + (STEP - 1 - i)
                    usable = (row >= first) & (row < length)
                    x, kept = _read_row(at, row, usable, spare, row_stride, inside, null, HAS_NULL)
                    if GAPS:
                        c = tl.where(kept & (state[7] == 0.0), x, c)
                        found = found | (kept & (tl.abs(x) == float("inf")))
                    elif HAS_NULL:
                        found = found | (inside & usable & (kept == 0))
                    state = _add(state, x, kept, c, row < length - 1, GAPS)
                    if DRIFT:
                        cut = block - history // STEP
                        stored = inside & (cut >= 0) & (row < length) & (history % STEP == STEP - 1 - i)
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

    width = tl.minimum(tiles * LANES, num_columns - left_column).to(tl.float64)
    with_drift = tl.sum(measurable, 0)
    wanted, place = first, tiles * 0
    block = tiles * 0
    while block * STEP < last:
        begin = block * STEP
        places = ()
        for i in tl.static_range(STEP):
            hit = (begin + i == wanted) & (wanted < last)
            places += (tl.where(hit, place, -1),)
            place = tl.where(hit, place + 1, place)
            wanted = tl.where(hit, wanted + step, wanted)
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
                c, _ = read(at + spare * row_stride, inside, null, HAS_NULL)

            row = begin + STEP
            x, kept = _read_row(at, row, (row >= first) & (row < length), spare, row_stride, inside, null, HAS_NULL)
            value = _distance(x, kept, c, GAPS)
            there = inside & (block < blocks - 1)
            state = _load_state(saved + block * FIELDS * LANES, there, value, kept, FIELDS, FIELDS, LANES)
            lefts = ()
            for i in tl.static_range(STEP):
                row = begin + (STEP - 1 - i)
                usable = (row >= first) & (row < length)
                x, kept = _read_row(at, row, usable, spare, row_stride, inside, null, HAS_NULL)
                if HAS_NULL and not GAPS:
                    found = found | (inside & usable & (kept == 0))
                state = _add(state, x, kept, c, row < length - 1, GAPS)
                lefts += (state,)

            # Prefixes of the next group, about the same centre, and about their own for windows with nothing before them.
            x, kept = read(at + (length + begin - 1) * row_stride, inside, null, HAS_NULL)
            there = inside & (begin > 0)
            state = _load_state(saved + running, there, _distance(x, kept, c, GAPS), kept, FIELDS, FIELDS, LANES)
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
                left = lefts[STEP - 1 - i]
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
                deviation = tl.fma(-sum_, mean, squares)
                # Above 0, asked as of an integer: other units than those of float64 do that.
                varies = deviation.to(tl.int64, bitcast=True) > 0
                deviation = tl.where(varies, deviation, 0.0)
                covariance = tl.fma(-mean, tl.fma(-mean, pairs, tl.fma(sum_, 2.0, -ends)), products)
                shrink = tl.where(varies, _inverse(deviation, WIDE), 0.0)
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
                    shown = inside & (places[i] >= 0)
                    missing = tl.where(inside, 1.0 - count / size, 0.0)
                    tl.store(to, tl.where(present, centre + mean, nan).to(tl.float32), mask=shown)
                    tl.store(to + plane, tl.where(present, deviation * inverse, nan).to(tl.float32), mask=shown)
                    tl.store(to + 2 * plane, tl.where(present, slope * flat, nan).to(tl.float32), mask=shown)
                    tl.store(to + 3 * plane, tl.where(present, covariance * shrink, nan).to(tl.float32), mask=shown)
                    tl.store(to + 4 * plane, tl.where(weight > 0.0, gap * weight, nan).to(tl.float32), mask=shown)
                    tl.store(to + 5 * plane, missing.to(tl.float32), mask=shown)
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
                    x, kept = _read_row(at, row, (row >= first) & follows, spare, row_stride, inside, null, HAS_NULL)
                    tail -= _distance(x, kept, c, GAPS)
                    if GAPS:
                        tail_n -= tl.where(kept, 1.0, 0.0)
                        own_past += tl.where(kept & (row >= length), x - own_c, 0.0)
                row = length + begin + i
                x, kept = _read_row(at, row, follows, spare, row_stride, inside, null, HAS_NULL)
                if HAS_NULL and not GAPS:
                    found = found | (inside & follows & (kept == 0))
                if GAPS:
                    found = found | (kept & (tl.abs(x) == float("inf")))
                    own_c = tl.where(kept & (state[7] == 0.0), x, own_c)
                    own = _add(own, x, kept, own_c, True, GAPS)
                state = _add(state, x, kept, c, True, GAPS)
                if DRIFT:
                    cut = block + (length - history) // STEP + 1
                    stored = inside & (cut < blocks) & ((length - history) % STEP == STEP - 1 - i)
                    tl.store(saved + cuts + cut * 3 * LANES, 0.0 - state[2], mask=stored)
                    if GAPS:
                        tl.store(saved + cuts + (cut * 3 + 1) * LANES, 0.0 - state[7], mask=stored)
                        tl.store(saved + cuts + (cut * 3 + 2) * LANES, own[2], mask=stored)
            if not GAPS:
                # A missing or infinite entry of any window has come into these two.
                found = found | (inside & ((lefts[STEP - 1][3] + state[3] < float("inf")) == 0))
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
                        tl.store(to + 5, width)
                        tl.store(to + 6, with_drift if DRIFT else 0.0)
                        tl.store(to + 7, width * size)
        block += 1
    return tl.max(found.to(tl.int32), 0) != 0
