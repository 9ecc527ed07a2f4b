"""window_stats on the GPU: windows as a suffix of one group of rows and a prefix of the next, nothing ever subtracted.

A program has a group (as many rows as a window) and up to four tiles of nodes. It walks through the group in blocks of windows:
their sums are in registers, and what one block leaves to the next, and to the other tiles, is saved in memory that is as large
for any series. Groups without a gap are taken first, by a kernel with few sums; a second kernel takes the others.

By arithmetic, not yet timed, for float32 and 12 + 12 rows:

| series | read | sums over nodes, written and read | saved in all | groups x strips |
| --- | ---: | ---: | ---: | ---: |
| 35,040 x 8,600 | 1.21 GB | 0.15 GB each | 35 MB | 1,460 x 68 |
| 35,040 x 170 | 24 MB | 13 MB each | 9 MB | 1,460 x 6 |
| 1,000,000 x 325 | 1.30 GB | 0.70 GB each | 9 MB | 41,667 x 11 |

A row is wanted by two groups, which are worked on at about the same time: the second finds it in the cache. With the pass for
the nodes' deviations that makes 2.3 reads of the first series, where 3 are the target. But 32 values take 157 instructions of a
warp, 51 of them in float64 (counted in the machine code for an H200): 97 for the sums themselves, 40 to add up 32 threads, 21
for the first walk back through a group. With one a cycle in each of 4 x 132 schedulers at 1.98 GHz that is 1.4 ms, where a read
at 4.3 TB/s takes 0.28. So about 6 reads are to be expected, and what decides is the instructions, not the memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .window_sums import group_windows

# A tile is a warp's worth of nodes, 128 bytes of a float32 row. Each thread has one node of it, so it reads again what it saved
# itself, and no barrier is needed.
LANES = 32
# Of the machine's registers as many as it takes: the compiler would spill more rather than use more than 168.
OPTIONS = {"num_warps": 1, "maxnreg": 255}
# Windows of a block, of float32 without gaps and with them; half as many of float64. Their sums are in registers.
STEP = 8
GAPPY_STEP = 2
# Tiles whose nodes a thread adds up itself before the threads do, and columns that make one more worth it: a narrow series
# shall have enough programs.
MOST_TILES = 4
COLUMNS_A_TILE = 256
# As many programs as an H200's 132 multiprocessors hold with 255 registers a thread; they go round the groups.
PROGRAMS = 132 * 8
# What they save may take this much of memory in all.
SCRATCH_BYTES = 1 << 28
# Columns that share one partial sum, as in the reference.
SPAN = 4096
NUM_SUMS = 8


# A stride or a length of 1 would otherwise become a constant without a type, and every size compile anew.
@triton.jit(
    do_not_specialize=[
        "row_stride", "num_columns", "num_windows", "num_groups", "tiles", "length", "history", "stride", "phase", "slots",
    ]
)  # fmt: skip
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
            left_column = strip * tiles * LANES
            wanted = strip >= 0
            if GAPS:
                wanted = tl.load(gappy + item)
            if wanted:
                if PER_NODE:
                    to = out + first_window * num_columns + left_column + lane
                else:
                    to = out + (strip * num_windows + first_window) * 8
                found = group_windows(
                    series + base * row_stride + left_column + lane, inverse_std, own, to, left_column, num_columns, tiles,
                    row_stride, first, last, step, length, history, num_windows, null,
                    PER_NODE, HAS_NULL, DRIFT, GAPS, STEP, LANES,
                )  # fmt: skip
                if GAPS:
                    tl.store(infinite, found, mask=found)
                else:
                    tl.store(gappy + item, found)
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
