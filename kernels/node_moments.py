"""node_moments on the GPU: one read of the series, in tiles of rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .window_sums import read

# A program has a block of rows of a warp's worth of nodes, and a warp eight rows of a tile: by arithmetic, not yet timed.
LANES = 32
TILE = 64
OPTIONS = {"num_warps": 8}
# Rows of a block, as in the reference.
MOMENT_ROWS = 1024


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
        x, kept = read(at + row * row_stride, searched, null, HAS_NULL)
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
        x, kept = read(at[None, :] + (row + line) * row_stride, there, null, HAS_NULL)
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
        HAS_NULL=null_value is not None, BLOCK_ROWS=MOMENT_ROWS, TILE=TILE, LANES=LANES, **OPTIONS,
    )  # fmt: skip
    return out
