"""pruned_loss on the GPU: one pass over prediction and target in tiles of columns, a merge per sample, a sum over the batch."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns of a tile of the forward pass, entries of one of the backward, and warps, by ascending width: the narrowest tile that
# holds all columns is taken, else the widest, with eight columns (four at 128) for every thread. A tile of 1,024 float32
# columns is read in runs of 4 KiB, and (64, 12, 8600) makes 576 programs, four for every multiprocessor of an H200. By that
# arithmetic, not by timing when a program runs: the tile decides the order of the sums and so their last bits, which are the
# same for a shape in every run.
CONFIGS = ((128, 1), (256, 1), (512, 2), (1024, 4))
NUM_WARPS = 4
# Steps a merge takes at a time.
BLOCK_STEP = 16
# Samples the last sum takes at a time.
BLOCK_SAMPLE = 256
# Steps whose sums of a column stay in the input's precision, as on the CPU.
ROWS = 32


@triton.jit
def _entries(
    prediction, target, mask, affine, affine_step, inside, column_affine,
    LOSS: tl.constexpr, PARAMETER: tl.constexpr, HAS_MASK: tl.constexpr, HAS_NULL: tl.constexpr,
    NULL_LOW: tl.constexpr, NULL_HIGH: tl.constexpr, HAS_AFFINE: tl.constexpr, HAS_BOUNDS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Error, target as the loss sees it and which entries count, at pointers of one shape. LOSS is a place in LOSSES."""
    t = tl.load(target, mask=inside, other=0.0).to(ACC)
    kept = inside
    if HAS_NULL:
        # A NaN lies on neither side of the bounds.
        if HAS_BOUNDS:
            low = tl.load(affine + 5 * affine_step + column_affine, mask=inside, other=0.0)
            high = tl.load(affine + 6 * affine_step + column_affine, mask=inside, other=0.0)
            kept = kept & ((t < low) | (t > high))
        else:
            kept = kept & ((t < NULL_LOW) | (t > NULL_HIGH))
    if HAS_MASK:
        kept = kept & (tl.load(mask, mask=inside, other=0) != 0)
    p = tl.load(prediction, mask=inside, other=0.0).to(ACC)
    if HAS_AFFINE:
        p = p * tl.load(affine + column_affine, mask=inside, other=1.0)
        p = p + tl.load(affine + affine_step + column_affine, mask=inside, other=0.0)
        t = t * tl.load(affine + 2 * affine_step + column_affine, mask=inside, other=1.0)
        t = t + tl.load(affine + 3 * affine_step + column_affine, mask=inside, other=0.0)
    e = p - t
    if HAS_AFFINE:
        e = e * tl.load(affine + 4 * affine_step + column_affine, mask=inside, other=1.0)
    if LOSS == 3:
        kept = kept & ((tl.abs(t) < PARAMETER) == 0)
    return e, t, kept


@triton.jit
def _pruned_loss_tile_kernel(
    prediction,  # [B, T, columns]
    target,  # [B, T, columns]
    mask,  # [B, T, columns] bool, or unused
    affine,  # [5 or 7, 1 or B, F], or unused
    column_weight,  # [B, F], or unused
    rows,  # [B, tiles, T, ROW] float64 out: sum of |e|, of the loss's terms, entries, and with weights of the weighted terms
    column_mean,  # [B, F] out, or unused
    spreads,  # [B, tiles, 3] float64 out: columns with entries, mean of their means, squared deviations from it
    num_steps,
    num_columns,
    inner,  # columns of the innermost dimension
    p_sample, p_step, p_outer, p_inner,
    t_sample, t_step, t_outer, t_inner,
    m_sample, m_step, m_outer, m_inner,
    affine_step, affine_sample,
    LOSS: tl.constexpr,
    PARAMETER: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_NULL: tl.constexpr,
    NULL_LOW: tl.constexpr,
    NULL_HIGH: tl.constexpr,
    HAS_AFFINE: tl.constexpr,
    HAS_BOUNDS: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROW: tl.constexpr,
    WIDE: tl.constexpr,
    TALL: tl.constexpr,
    BLOCK_COLUMN: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if WIDE else tl.float32
    SUM: tl.constexpr = tl.float64 if WIDE or TALL else tl.float32
    sample = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1).to(tl.int64)
    column = tile * BLOCK_COLUMN + tl.arange(0, BLOCK_COLUMN)
    inside = column < num_columns
    outer_index = column // inner
    inner_index = column % inner
    p = prediction + sample * p_sample + outer_index * p_outer + inner_index * p_inner
    t = target + sample * t_sample + outer_index * t_outer + inner_index * t_inner
    m = mask + sample * m_sample + outer_index * m_outer + inner_index * m_inner
    total = tl.zeros([BLOCK_COLUMN], SUM)
    entries = tl.zeros([BLOCK_COLUMN], tl.int32)
    row = rows + (sample * tl.num_programs(1) + tile) * num_steps * ROW
    if HAS_COLUMN:
        share = tl.load(column_weight + sample * num_columns + column, mask=inside, other=0.0)
    step = num_steps * 0
    while step < num_steps:
        e, y, kept = _entries(
            p, t, m, affine, affine_step, inside, sample * affine_sample + column,
            LOSS, PARAMETER, HAS_MASK, HAS_NULL, NULL_LOW, NULL_HIGH, HAS_AFFINE, HAS_BOUNDS, ACC,
        )  # fmt: skip
        u = tl.where(kept, tl.abs(e), 0.0)
        term = u
        if LOSS == 1:
            term = u * u
        if LOSS == 2:
            term = tl.where(u <= PARAMETER, 0.5 * u * u, PARAMETER * (u - 0.5 * PARAMETER))
        if LOSS == 3:
            term = tl.where(kept, u / tl.where(kept, tl.abs(y), 1.0), 0.0)
        if LOSS == 4:
            term = tl.where(e < 0.0, u * PARAMETER, u * (1.0 - PARAMETER))
        total += u.to(SUM)
        count = kept.to(tl.int32)
        entries += count
        tl.store(row, tl.sum(u, 0).to(tl.float64))
        tl.store(row + 1, tl.sum(term, 0).to(tl.float64))
        tl.store(row + 2, tl.sum(count, 0).to(tl.float64))
        if HAS_COLUMN:
            tl.store(row + 3, tl.sum(tl.where(kept, term * share, 0.0), 0).to(tl.float64))
        row += ROW
        p += p_step
        t += t_step
        m += m_step
        step += 1
    seen = entries > 0
    mean = (total / tl.maximum(entries, 1).to(SUM)).to(tl.float64)
    if COLUMNS:
        of_column = tl.where(seen, mean, float("nan"))
        tl.store(column_mean + sample * num_columns + column, of_column.to(ACC), mask=inside)
    groups = tl.sum(seen.to(tl.float64), 0)
    centre = tl.sum(tl.where(seen, mean, 0.0), 0) / tl.maximum(groups, 1.0)
    deviation = tl.where(seen, mean - centre, 0.0)
    out = spreads + (sample * tl.num_programs(1) + tile) * 3
    tl.store(out, groups)
    tl.store(out + 1, centre)
    tl.store(out + 2, tl.sum(deviation * deviation, 0))


@triton.jit
def _pruned_loss_sample_kernel(
    rows,  # [B, tiles, T, ROW] float64
    spreads,  # [B, tiles, 3] float64
    horizon,  # [T], or unused
    means,  # [B, T] float64 scratch: -1 where a step has no entries
    loss,  # [B] out
    statistics,  # [3, B] out
    count,  # [B] int64 out
    sums,  # [B] float64 out: the loss's terms, weighted by columns if there are weights
    num_samples,
    num_steps,
    num_tiles,
    SPATIAL: tl.constexpr,
    TEMPORAL: tl.constexpr,
    HAS_HORIZON: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_STEP: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    base = rows + sample * num_tiles * num_steps * ROW
    total = tl.zeros([BLOCK_STEP], tl.float64)
    weighted = tl.zeros([BLOCK_STEP], tl.float64)
    entries = tl.zeros([BLOCK_STEP], tl.float64)
    level = tl.zeros([BLOCK_STEP], tl.float64)
    groups = tl.zeros([BLOCK_STEP], tl.float64)
    first = num_steps * 0
    while first < num_steps:
        step = first + tl.arange(0, BLOCK_STEP)
        valid = step < num_steps
        u = tl.zeros([BLOCK_STEP], tl.float64)
        term = tl.zeros([BLOCK_STEP], tl.float64)
        share = tl.zeros([BLOCK_STEP], tl.float64)
        seen = tl.zeros([BLOCK_STEP], tl.float64)
        tile = num_tiles * 0
        while tile < num_tiles:
            at = base + (tile * num_steps + step).to(tl.int64) * ROW
            u += tl.load(at, mask=valid, other=0.0)
            term += tl.load(at + 1, mask=valid, other=0.0)
            seen += tl.load(at + 2, mask=valid, other=0.0)
            if ROW == 4:
                share += tl.load(at + 3, mask=valid, other=0.0)
            tile += 1
        if HAS_HORIZON:
            factor = tl.load(horizon + step, mask=valid, other=0.0).to(tl.float64)
            term = term * factor
            share = share * factor
        mean = tl.where(seen > 0.0, u / tl.maximum(seen, 1.0), -1.0)
        tl.store(means + sample * num_steps + step, mean, mask=valid)
        total += term
        weighted += share
        entries += seen
        level += tl.where(seen > 0.0, mean, 0.0)
        groups += tl.where(seen > 0.0, 1.0, 0.0)
        first += BLOCK_STEP
    sum_ = tl.sum(total, 0)
    number = tl.sum(entries, 0)
    steps_seen = tl.maximum(tl.sum(groups, 0), 1.0)
    centre = tl.sum(level, 0) / steps_seen
    # What other lanes of this program stored above is read here.
    tl.debug_barrier()
    square = tl.zeros([BLOCK_STEP], tl.float64)
    first = num_steps * 0
    while first < num_steps:
        step = first + tl.arange(0, BLOCK_STEP)
        mean = tl.load(means + sample * num_steps + step, mask=step < num_steps, other=-1.0)
        deviation = tl.where(mean != -1.0, mean - centre, 0.0)
        square += deviation * deviation
        first += BLOCK_STEP
    temporal = tl.sqrt(tl.sum(square, 0) / steps_seen)
    # Tiles of columns in order: numbers, means and squared deviations of two groups give those of both.
    tile = num_tiles * 0
    nodes = sum_ * 0.0
    middle = sum_ * 0.0
    squares = sum_ * 0.0
    at = spreads + sample * num_tiles * 3
    nodes = tl.load(at)
    middle = tl.load(at + 1)
    squares = tl.load(at + 2)
    tile = tile + 1
    while tile < num_tiles:
        more = tl.load(at + tile * 3)
        its_middle = tl.load(at + tile * 3 + 1)
        both = tl.maximum(nodes + more, 1.0)
        gap = its_middle - middle
        # A tile without entries moves nothing.
        gap = tl.where((more > 0.0) & (nodes > 0.0), gap, 0.0)
        squares += tl.load(at + tile * 3 + 2) + gap * gap * nodes * more / both
        middle = tl.where(nodes > 0.0, middle + gap * more / both, its_middle)
        nodes += more
        tile += 1
    spatial = tl.sqrt(squares / tl.maximum(nodes, 1.0))
    sum_ = tl.where(number > 0.0, sum_, 0.0)
    mean = sum_ / tl.maximum(number, 1.0)
    score = mean
    # A weight of 0 leaves its term out: 0 * inf would turn an infinite loss into NaN.
    if SPATIAL > 0.0:
        score += SPATIAL * spatial
    if TEMPORAL > 0.0:
        score += TEMPORAL * temporal
    tl.store(loss + sample, mean)
    tl.store(statistics + sample, spatial)
    tl.store(statistics + num_samples + sample, temporal)
    tl.store(statistics + 2 * num_samples + sample, score)
    tl.store(count + sample, number.to(tl.int64))
    if ROW == 4:
        sum_ = tl.where(number > 0.0, tl.sum(weighted, 0), 0.0)
    tl.store(sums + sample, sum_)


@triton.jit
def _pruned_loss_batch_kernel(
    sums,  # [B] float64
    count,  # [B] int64
    weight,  # [B], or unused
    value,  # [] out
    num_samples,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_SAMPLE: tl.constexpr,
):
    total = tl.zeros([BLOCK_SAMPLE], tl.float64)
    entries = tl.zeros([BLOCK_SAMPLE], tl.int64)
    first = num_samples * 0
    while first < num_samples:
        sample = first + tl.arange(0, BLOCK_SAMPLE)
        valid = sample < num_samples
        some = tl.load(sums + sample, mask=valid, other=0.0)
        if HAS_WEIGHT:
            some = some * tl.load(weight + sample, mask=valid, other=1.0).to(tl.float64)
        total += some
        entries += tl.load(count + sample, mask=valid, other=0)
        first += BLOCK_SAMPLE
    number = tl.maximum(tl.sum(entries, 0), 1).to(tl.float64)
    tl.store(value, tl.sum(total, 0) / number)


@triton.jit
def _pruned_loss_backward_kernel(
    prediction, target, mask, affine,
    horizon,  # [T], or unused
    grad_value,  # [], or unused
    grad_loss,  # [B], or unused
    weight,  # [B], or unused
    column_weight,  # [B, F], or unused
    count,  # [B] int64
    number,  # [] int64: sum of count
    grad_prediction,  # [B, T, columns] out
    grad_target,  # likewise, or unused
    num_steps, num_columns, inner,
    p_sample, p_step, p_outer, p_inner,
    t_sample, t_step, t_outer, t_inner,
    m_sample, m_step, m_outer, m_inner,
    gp_sample, gp_step, gp_outer, gp_inner,
    gt_sample, gt_step, gt_outer, gt_inner,
    affine_step, affine_sample,
    LOSS: tl.constexpr,
    PARAMETER: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_NULL: tl.constexpr,
    NULL_LOW: tl.constexpr,
    NULL_HIGH: tl.constexpr,
    HAS_AFFINE: tl.constexpr,
    HAS_BOUNDS: tl.constexpr,
    HAS_HORIZON: tl.constexpr,
    HAS_VALUE: tl.constexpr,
    HAS_LOSS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    TARGET_TOO: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_COLUMN: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if WIDE else tl.float32
    line = tl.program_id(0).to(tl.int64)
    sample = line // num_steps
    step = line % num_steps
    column = tl.program_id(1).to(tl.int64) * BLOCK_COLUMN + tl.arange(0, BLOCK_COLUMN)
    inside = column < num_columns
    outer_index = column // inner
    inner_index = column % inner
    at = sample * affine_sample + column
    e, y, kept = _entries(
        prediction + sample * p_sample + step * p_step + outer_index * p_outer + inner_index * p_inner,
        target + sample * t_sample + step * t_step + outer_index * t_outer + inner_index * t_inner,
        mask + sample * m_sample + step * m_step + outer_index * m_outer + inner_index * m_inner,
        affine, affine_step, inside, at,
        LOSS, PARAMETER, HAS_MASK, HAS_NULL, NULL_LOW, NULL_HIGH, HAS_AFFINE, HAS_BOUNDS, ACC,
    )  # fmt: skip
    scale = tl.zeros([], tl.float64)
    if HAS_VALUE:
        scale = tl.load(grad_value).to(tl.float64) / tl.maximum(tl.load(number), 1).to(tl.float64)
        if HAS_WEIGHT:
            scale = scale * tl.load(weight + sample).to(tl.float64)
    if HAS_COLUMN and HAS_VALUE:
        scale = scale * tl.load(column_weight + sample * num_columns + column, mask=inside, other=0.0).to(tl.float64)
    if HAS_LOSS:
        scale += tl.load(grad_loss + sample).to(tl.float64) / tl.maximum(tl.load(count + sample), 1).to(tl.float64)
    if HAS_HORIZON:
        scale = scale * tl.load(horizon + step).to(tl.float64)
    c = scale.to(ACC)
    sign = tl.where(e > 0.0, 1.0, 0.0) - tl.where(e < 0.0, 1.0, 0.0)
    slope = c * sign.to(ACC)
    size = tl.where(kept, tl.abs(y), 1.0)
    if LOSS == 1:
        slope = c * (2.0 * e)
    if LOSS == 2:
        low = tl.where(e < -PARAMETER, -PARAMETER, e)
        slope = c * tl.where(low > PARAMETER, PARAMETER, low)
    if LOSS == 3:
        slope = slope / size
    if LOSS == 4:
        slope = tl.where(e > 0.0, c * (1.0 - PARAMETER), 0.0) - tl.where(e < 0.0, c * PARAMETER, 0.0)
    if HAS_AFFINE:
        slope = slope * tl.load(affine + 4 * affine_step + at, mask=inside, other=1.0)
    grad = slope
    if HAS_AFFINE:
        grad = grad * tl.load(affine + at, mask=inside, other=1.0)
    grad = tl.where(kept, grad, 0.0)
    to = grad_prediction + sample * gp_sample + step * gp_step + outer_index * gp_outer + inner_index * gp_inner
    tl.store(to, grad.to(grad_prediction.dtype.element_ty), mask=inside)
    if TARGET_TOO:
        grad = -slope
        if LOSS == 3:
            share = c * tl.abs(e) / (size * size)
            grad = grad - tl.where(y < 0.0, -share, share)
        if HAS_AFFINE:
            grad = grad * tl.load(affine + 2 * affine_step + at, mask=inside, other=1.0)
        grad = tl.where(kept, grad, 0.0)
        to = grad_target + sample * gt_sample + step * gt_step + outer_index * gt_outer + inner_index * gt_inner
        tl.store(to, grad.to(grad_target.dtype.element_ty), mask=inside)


def _split(tensors: list[Tensor]) -> tuple[int, list[Tensor]]:
    """Tensors as [B, T, outer, inner] with one inner size that fits all their layouts; copied only where none does."""
    shape = tensors[0].shape[2:]
    if not shape:
        return 1, [x.view(*x.shape, 1, 1) for x in tensors]
    for cut in range(len(shape), 0, -1):
        outer, inner = shape[: cut - 1].numel(), shape[cut - 1 :].numel()
        try:
            return inner, [x.view(x.shape[0], x.shape[1], outer, inner) for x in tensors]
        except RuntimeError:
            continue
    return shape.numel(), [x.reshape(x.shape[0], x.shape[1], 1, shape.numel()) for x in tensors]


def config_of(num_columns: int) -> tuple[int, int]:
    """Columns of a tile and its warps, a function of the number of columns alone."""
    return next((config for config in CONFIGS if config[0] >= num_columns), CONFIGS[-1])


def _null(null_value: float | None, null_tolerance: float, dtype: torch.dtype) -> dict[str, float]:
    """Between which targets one means missing, as numbers of the precision that the kernel compares in."""
    null = math.nan if null_value is None else float(torch.tensor(null_value, dtype=torch.float64).to(dtype))
    # No number lies between the bounds of NaN.
    bounds = (null - null_tolerance, null + null_tolerance) if null == null else (math.inf, -math.inf)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    low, high = torch.tensor(bounds, dtype=torch.float64).to(accumulator).tolist()
    return {"HAS_NULL": null_value is not None, "NULL_LOW": low, "NULL_HIGH": high}


def pruned_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    affine: Tensor | None,
    horizon: Tensor | None,
    column_weight: Tensor | None,
    null_value: float | None,
    null_tolerance: float,
    loss: int,
    parameter: float,
    spatial: float,
    temporal: float,
    column_means: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward kernels; arguments and results as in stprune.ops.pruned_loss."""
    samples, steps = prediction.shape[:2]
    wide = prediction.dtype == torch.float64
    dtype = torch.float64 if wide else torch.float32
    value = prediction.new_zeros((), dtype=dtype)
    mean = prediction.new_zeros((samples,), dtype=dtype)
    statistics = prediction.new_zeros((3, samples), dtype=dtype)
    count = prediction.new_zeros((samples,), dtype=torch.int64)
    num_columns = prediction.shape[2:].numel()
    column_mean = prediction.new_empty((samples, num_columns) if column_means else (0,), dtype=dtype)
    if prediction.numel() == 0:
        return value, mean, statistics, count, column_mean.fill_(float("nan"))
    inner, views = _split([x for x in (prediction, target, mask) if x is not None])
    block_column, num_warps = config_of(num_columns)
    tiles = triton.cdiv(num_columns, block_column)
    row = 3 if column_weight is None else 4
    rows = prediction.new_empty((samples, tiles, steps, row), dtype=torch.float64)
    spreads = prediction.new_empty((samples, tiles, 3), dtype=torch.float64)
    means = prediction.new_empty((samples, steps), dtype=torch.float64)
    sums = prediction.new_empty((samples,), dtype=torch.float64)
    p, t = views[:2]
    m = views[2] if mask is not None else t
    _pruned_loss_tile_kernel[(samples, tiles)](
        p, t, m, p if affine is None else affine, p if column_weight is None else column_weight,
        rows, column_mean if column_means else spreads, spreads,
        steps, num_columns, inner,
        *p.stride(), *t.stride(), *m.stride(), *_affine_strides(affine, num_columns),
        LOSS=loss, PARAMETER=parameter, HAS_MASK=mask is not None, HAS_AFFINE=affine is not None,
        HAS_BOUNDS=affine is not None and affine.shape[0] > 5,
        **_null(null_value, null_tolerance, target.dtype),
        HAS_COLUMN=column_weight is not None, COLUMNS=column_means, ROW=row,
        WIDE=wide, TALL=steps > ROWS, BLOCK_COLUMN=block_column, num_warps=num_warps,
    )  # fmt: skip
    _pruned_loss_sample_kernel[(samples,)](
        rows, spreads, sums if horizon is None else horizon, means, mean, statistics, count, sums,
        samples, steps, tiles, SPATIAL=spatial, TEMPORAL=temporal, HAS_HORIZON=horizon is not None,
        ROW=row, BLOCK_STEP=BLOCK_STEP, num_warps=1,
    )  # fmt: skip
    _pruned_loss_batch_kernel[(1,)](
        sums, count, sums if weight is None else weight, value, samples,
        HAS_WEIGHT=weight is not None, BLOCK_SAMPLE=BLOCK_SAMPLE, num_warps=NUM_WARPS,
    )  # fmt: skip
    return value, mean, statistics, count, column_mean


def pruned_loss_backward(
    grad_value: Tensor | None,
    grad_loss: Tensor | None,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    affine: Tensor | None,
    horizon: Tensor | None,
    column_weight: Tensor | None,
    null_value: float | None,
    null_tolerance: float,
    loss: int,
    parameter: float,
    count: Tensor,
    target_too: bool,
) -> tuple[Tensor, Tensor]:
    """Launch the backward kernel; arguments and results as in stprune.ops.pruned_loss."""
    out = torch.empty_like(prediction)
    out_target = torch.empty_like(target) if target_too else target.new_empty((0,))
    if prediction.numel() == 0:
        return out, out_target
    samples, steps = prediction.shape[:2]
    given = [prediction, target, *([] if mask is None else [mask])]
    results = [out, *([out_target] if target_too else [])]
    inner, views = _split([*given, *results])
    if any(view.data_ptr() != x.data_ptr() for view, x in zip(views[len(given) :], results, strict=True)):
        # No split fits every layout: the gradients are written contiguous.
        results = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in results]
        inner, views = _split([*(x.contiguous() for x in given), *results])
    p, t, *others = views
    m = others.pop(0) if mask is not None else t
    gp = others[0]
    gt = others[1] if target_too else gp
    columns = p.shape[2] * inner
    number = count.sum()
    block_column, num_warps = config_of(columns)
    _pruned_loss_backward_kernel[(samples * steps, triton.cdiv(columns, block_column))](
        p, t, m, p if affine is None else affine, p if horizon is None else horizon,
        number if grad_value is None else grad_value, number if grad_loss is None else grad_loss,
        number if weight is None else weight, p if column_weight is None else column_weight, count, number, gp, gt,
        steps, columns, inner,
        *p.stride(), *t.stride(), *m.stride(), *gp.stride(), *gt.stride(), *_affine_strides(affine, columns),
        LOSS=loss, PARAMETER=parameter, HAS_MASK=mask is not None, HAS_AFFINE=affine is not None,
        HAS_BOUNDS=affine is not None and affine.shape[0] > 5,
        **_null(null_value, null_tolerance, target.dtype),
        HAS_HORIZON=horizon is not None, HAS_VALUE=grad_value is not None, HAS_LOSS=grad_loss is not None,
        HAS_WEIGHT=weight is not None, HAS_COLUMN=column_weight is not None,
        TARGET_TOO=target_too, WIDE=prediction.dtype == torch.float64,
        BLOCK_COLUMN=block_column, num_warps=num_warps,
    )  # fmt: skip
    return results[0], results[1] if target_too else out_target


def _affine_strides(affine: Tensor | None, columns: int) -> tuple[int, int]:
    """Entries between the rows of the affine map, and between its samples."""
    if affine is None:
        return 0, 0
    return affine.shape[1] * columns, 0 if affine.shape[1] == 1 else columns
