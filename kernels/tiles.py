"""One pass over prediction and target of a loss, in tiles of columns; and what the backward shares with it."""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns of a tile of the forward pass, entries of one of the backward, and warps, by ascending width: the narrowest tile that
# holds all columns is taken, else the widest, with eight columns (four at 128, half as many where `heavy`) for every thread.
# A tile of 1,024 float32 columns is read in runs of 4 KiB, and (64, 12, 8600) makes 576 programs, four for every multiprocessor
# of an H200. By that arithmetic, not by timing when a program runs: the tile decides the order of the sums and so their last
# bits, which are the same for a shape in every run.
CONFIGS = ((128, 1), (256, 1), (512, 2), (1024, 4))
# Steps whose sums of a column stay in the input's precision, as on the CPU.
ROWS = 32


@triton.jit
def entries(
    prediction, target, mask, affine, affine_step, inside, column_affine, parameter, null_low, null_high,
    LOSS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_NULL: tl.constexpr, HAS_AFFINE: tl.constexpr, HAS_BOUNDS: tl.constexpr,
    ACC: tl.constexpr,
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
            kept = kept & ((t < null_low) | (t > null_high))
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
        kept = kept & ((tl.abs(t) < parameter) == 0)
    return e, t, kept


@triton.jit
def tile_kernel(
    prediction,  # [B, T, columns]
    target,  # [B, T, columns]
    mask,  # [B, T, columns] bool, or unused
    affine,  # [5 or 7, 1 or B, F], or unused
    column_weight,  # [B, F], or unused
    rows,  # [B, tiles, T, ROW] float64 out: sum of |e|, of the loss's terms, entries, and with weights of the weighted terms
    column_mean,  # [B, F] out, or unused
    spreads,  # [B, tiles, 3] float64 out: columns with entries, mean of their means, squared deviations from it
    claims,  # [slots] int32 out, or unused: -1, as the next kernel wants to find it
    num_steps,
    num_columns,
    inner,  # columns of the innermost dimension
    p_sample, p_step, p_outer, p_inner,
    t_sample, t_step, t_outer, t_inner,
    m_sample, m_step, m_outer, m_inner,
    affine_step: tl.int64, affine_sample,
    parameter: tl.float64,
    null_low: tl.float64,
    null_high: tl.float64,
    LOSS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_NULL: tl.constexpr,
    HAS_AFFINE: tl.constexpr,
    HAS_BOUNDS: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    COLUMNS: tl.constexpr,
    CLAIMED: tl.constexpr,
    SLOTS: tl.constexpr,
    ROW: tl.constexpr,
    WIDE: tl.constexpr,
    TALL: tl.constexpr,
    BLOCK_COLUMN: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if WIDE else tl.float32
    SUM: tl.constexpr = tl.float64 if WIDE or TALL else tl.float32
    sample = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1).to(tl.int64)
    if CLAIMED and tile == 0:
        tl.store(claims + sample * SLOTS + tl.arange(0, SLOTS), tl.full([SLOTS], -1, tl.int32))
    size, rest = tl.full([], parameter, ACC), tl.full([], 1.0 - parameter, ACC)
    low, high = tl.full([], null_low, ACC), tl.full([], null_high, ACC)
    column = tile * BLOCK_COLUMN + tl.arange(0, BLOCK_COLUMN)
    inside = column < num_columns
    outer_index = column // inner
    inner_index = column % inner
    p = prediction + sample * p_sample + outer_index * p_outer + inner_index * p_inner
    t = target + sample * t_sample + outer_index * t_outer + inner_index * t_inner
    m = mask + sample * m_sample + outer_index * m_outer + inner_index * m_inner
    total = tl.zeros([BLOCK_COLUMN], SUM)
    seen = tl.zeros([BLOCK_COLUMN], tl.int32)
    row = rows + (sample * tl.num_programs(1) + tile) * num_steps * ROW
    if HAS_COLUMN:
        share = tl.load(column_weight + sample * num_columns + column, mask=inside, other=0.0)
    step = num_steps * 0
    while step < num_steps:
        e, y, kept = entries(
            p, t, m, affine, affine_step, inside, sample * affine_sample + column, size, low, high,
            LOSS, HAS_MASK, HAS_NULL, HAS_AFFINE, HAS_BOUNDS, ACC,
        )  # fmt: skip
        u = tl.where(kept, tl.abs(e), 0.0)
        term = u
        if LOSS == 1:
            term = u * u
        if LOSS == 2:
            term = tl.where(u <= size, 0.5 * u * u, size * (u - 0.5 * size))
        if LOSS == 3:
            term = tl.where(kept, u / tl.where(kept, tl.abs(y), 1.0), 0.0)
        if LOSS == 4:
            term = tl.where(e < 0.0, u * size, u * rest)
        total += u.to(SUM)
        count = kept.to(tl.int32)
        seen += count
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
    mean = (total / tl.maximum(seen, 1).to(SUM)).to(tl.float64)
    there = seen > 0
    if COLUMNS:
        of_column = tl.where(there, mean, float("nan"))
        tl.store(column_mean + sample * num_columns + column, of_column.to(ACC), mask=inside)
    groups = tl.sum(there.to(tl.float64), 0)
    centre = tl.sum(tl.where(there, mean, 0.0), 0) / tl.maximum(groups, 1.0)
    deviation = tl.where(there, mean - centre, 0.0)
    out = spreads + (sample * tl.num_programs(1) + tile) * 3
    tl.store(out, groups)
    tl.store(out + 1, centre)
    tl.store(out + 2, tl.sum(deviation * deviation, 0))


def split(tensors: list[Tensor]) -> tuple[int, list[Tensor]]:
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


def config_of(num_columns: int, *, heavy: bool) -> tuple[int, int]:
    """Columns of a tile and its warps; `heavy` are those that hold an affine map or float64, which eight columns do not fit."""
    block, warps = next((config for config in CONFIGS if config[0] >= num_columns), CONFIGS[-1])
    return block, warps * (1 + heavy)


@functools.cache
def null_bounds(null_value: float | None, null_tolerance: float, dtype: torch.dtype) -> tuple[float, float]:
    """Between which targets one means missing, as numbers of the precision that the kernels compare in."""
    null = math.nan if null_value is None else float(torch.tensor(null_value, dtype=torch.float64).to(dtype))
    # No number lies between the bounds of NaN.
    bounds = (null - null_tolerance, null + null_tolerance) if null == null else (math.inf, -math.inf)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    low, high = torch.tensor(bounds, dtype=torch.float64).to(accumulator).tolist()
    return low, high


def affine_strides(affine: Tensor | None, columns: int) -> tuple[int, int]:
    """Entries between the rows of the affine map, and between its samples."""
    if affine is None:
        return 0, 0
    return affine.shape[1] * columns, 0 if affine.shape[1] == 1 else columns


def settings(
    mask: Tensor | None,
    affine: Tensor | None,
    null_value: float | None,
    null_tolerance: float,
    loss: int,
    parameter: float,
    dtype: torch.dtype,
    num_columns: int,
) -> dict[str, object]:
    """What the passes forward and backward are told alike, for targets of this dtype."""
    low, high = null_bounds(null_value, null_tolerance, dtype)
    block_column, num_warps = config_of(num_columns, heavy=affine is not None or dtype == torch.float64)
    return {
        "parameter": parameter,
        "null_low": low,
        "null_high": high,
        "LOSS": loss,
        "HAS_MASK": mask is not None,
        "HAS_NULL": null_value is not None,
        "HAS_AFFINE": affine is not None,
        "HAS_BOUNDS": affine is not None and affine.shape[0] > 5,
        "BLOCK_COLUMN": block_column,
        "num_warps": num_warps,
    }
