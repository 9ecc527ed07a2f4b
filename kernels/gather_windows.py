"""gather_windows on the GPU: x and y of all windows in one launch."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

# A tile has up to 16 rows of a window by 256 values (node and channel) of a row: rows are read in runs of at least 512 bytes,
# and where time is the innermost axis of the output it is written in runs of 64 bytes. Chosen by that arithmetic, not yet
# timed on a GPU.
BLOCK_TIME = 16
BLOCK_VALUE = 256
NUM_WARPS = 4

ABSENT = 0
NUMBER = 1
TABLE = 2


@triton.jit
def _entries(table, node, channel, valid, KIND: tl.constexpr, TABLE_CHANNELS: tl.constexpr):
    """Values that broadcast over a tile, of a table [num_nodes, TABLE_CHANNELS] (KIND 2) or of one number (KIND 1)."""
    if KIND == 1:
        entries = tl.zeros(node.shape, table.dtype.element_ty) + tl.load(table)
    else:
        entries = tl.load(table + node * TABLE_CHANNELS + channel, mask=valid, other=1.0)
    return entries[None, :]


@triton.jit
def _gather_tile(
    series,
    node,
    mean,
    std,
    scale,
    offset,
    features,
    channel,
    out,
    window,
    first_row,
    step_tile,
    value_tile,
    num_steps,
    num_drawn,
    num_nodes,
    missing,
    fill,
    series_time,
    series_node,
    series_channel,
    out_window,
    out_time,
    out_node,
    out_channel,
    SERIES_CHANNELS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    NUM_FEATURES: tl.constexpr,
    HAS_NODE: tl.constexpr,
    HAS_CHANNEL: tl.constexpr,
    MEAN: tl.constexpr,
    STD: tl.constexpr,
    SCALE: tl.constexpr,
    OFFSET: tl.constexpr,
    HAS_MISSING: tl.constexpr,
    HAS_FILL: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK_TIME: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
):
    """Rows of one window by values of its row: read, compute step by step as the reference does, write."""
    step = step_tile * BLOCK_TIME + tl.arange(0, BLOCK_TIME)
    value = value_tile.to(tl.int32) * BLOCK_VALUE + tl.arange(0, BLOCK_VALUE)
    part = (value % (NUM_CHANNELS + NUM_FEATURES)).to(tl.int64)
    place = (value // (NUM_CHANNELS + NUM_FEATURES)).to(tl.int64)
    inside = place < num_drawn
    is_value = inside & (part < NUM_CHANNELS)
    in_window = (step < num_steps)[:, None]
    from_node = place
    if HAS_NODE:
        from_node = tl.load(node + window * num_drawn + place, mask=inside, other=0)
        exists = (from_node >= 0) & (from_node < num_nodes)
        tl.device_assert(exists, "gather_windows: node must lie in [0, number of nodes - 1]")
        from_node = tl.where(exists, from_node, 0)
    from_channel = part
    if HAS_CHANNEL:
        from_channel = tl.load(channel + part, mask=is_value, other=0)
    row = first_row + step
    source = row[:, None] * series_time + (from_node * series_node + from_channel * series_channel)[None, :]
    raw = tl.load(series + source, mask=in_window & is_value[None, :], other=0)

    result = raw
    if MEAN + SCALE + OFFSET > 0 or HAS_MISSING or HAS_FILL:
        result = raw.to(tl.float64 if DOUBLE else tl.float32)
    if SCALE > 0:
        result = result * _entries(scale, from_node, from_channel, is_value, SCALE, SERIES_CHANNELS)
    if OFFSET > 0:
        result = result + _entries(offset, from_node, from_channel, is_value, OFFSET, SERIES_CHANNELS)
    if HAS_MISSING:
        result = tl.where(raw == missing, float("nan"), result)
    if MEAN > 0:
        result = result - _entries(mean, from_node, from_channel, is_value, MEAN, SERIES_CHANNELS)
        divisor = tl.broadcast_to(_entries(std, from_node, from_channel, is_value, STD, SERIES_CHANNELS), result.shape)
        if DOUBLE:
            result = result / divisor
        else:
            # `/` would be approximate in float32.
            result = tl.div_rn(result, divisor)
    if HAS_FILL:
        result = tl.where(result != result, tl.full([1, 1], fill, result.dtype), result)
    result = result.to(out.dtype.element_ty)
    written = in_window & is_value[None, :]
    if NUM_FEATURES > 0:
        is_feature = inside & (part >= NUM_CHANNELS)
        from_features = row[:, None] * NUM_FEATURES + (part - NUM_CHANNELS)[None, :]
        wanted = in_window & is_feature[None, :]
        result = tl.where(is_feature[None, :], tl.load(features + from_features, mask=wanted, other=0.0), result)
        written = written | wanted
    target = window * out_window + step[:, None] * out_time + (place * out_node + part * out_channel)[None, :]
    tl.store(out + target, result, mask=written)


# Ids are looked at where they are read: with operators of their own that takes ten launches. A wrong one is never followed.
@triton.jit(do_not_specialize=["last_start", "num_nodes"], debug=True)
def _gather_windows_kernel(
    series,  # [time, num_nodes, SERIES_CHANNELS]
    start,  # [windows] int64
    node,  # [windows, num_drawn] int64 with HAS_NODE
    mean,  # [num_nodes, SERIES_CHANNELS] (MEAN 2) or one number (MEAN 1) in the type of the arithmetic
    std,  # likewise
    scale,  # likewise
    offset,  # likewise
    features,  # [time, NUM_FEATURES] in x's dtype
    channel,  # [NUM_TARGETS] int64 with HAS_CHANNEL
    x,  # [windows, history, num_drawn, SERIES_CHANNELS + NUM_FEATURES]
    y,  # [windows, horizon, num_drawn, NUM_TARGETS]
    history,
    horizon,
    num_drawn,
    last_start,  # of the rows at which a window can begin
    num_nodes,
    missing,
    fill: tl.float64,
    x_value_tiles,
    x_tiles,
    y_value_tiles,
    y_tiles,
    series_time,
    series_node,
    series_channel,
    x_window,
    x_time,
    x_node,
    x_channel,
    y_window,
    y_time,
    y_node,
    y_channel,
    SERIES_CHANNELS: tl.constexpr,
    NUM_FEATURES: tl.constexpr,
    NUM_TARGETS: tl.constexpr,
    HAS_NODE: tl.constexpr,
    HAS_CHANNEL: tl.constexpr,
    MEAN: tl.constexpr,
    STD: tl.constexpr,
    SCALE: tl.constexpr,
    OFFSET: tl.constexpr,
    HAS_MISSING: tl.constexpr,
    HAS_FILL: tl.constexpr,
    NORMALIZE_TARGET: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK_TIME: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    window = program // (x_tiles + y_tiles)
    tile = program % (x_tiles + y_tiles)
    first_row = tl.load(start + window)
    fits = (first_row >= 0) & (first_row <= last_start)
    tl.device_assert(fits, "gather_windows: start must lie in [0, number of rows - history - horizon]")
    first_row = tl.where(fits, first_row, 0)
    if tile < x_tiles:
        _gather_tile(
            series, node, mean, std, scale, offset, features, channel, x,
            window, first_row, tile // x_value_tiles, tile % x_value_tiles, history, num_drawn, num_nodes,
            missing, fill, series_time, series_node, series_channel, x_window, x_time, x_node, x_channel,
            SERIES_CHANNELS, SERIES_CHANNELS, NUM_FEATURES, HAS_NODE, False, MEAN, STD, SCALE, OFFSET,
            HAS_MISSING, HAS_FILL, DOUBLE, BLOCK_TIME, BLOCK_VALUE,
        )  # fmt: skip
    else:
        tile -= x_tiles
        _gather_tile(
            series, node, mean, std, scale, offset, features, channel, y,
            window, first_row + history, tile // y_value_tiles, tile % y_value_tiles, horizon, num_drawn, num_nodes,
            missing, fill, series_time, series_node, series_channel, y_window, y_time, y_node, y_channel,
            SERIES_CHANNELS, NUM_TARGETS, 0, HAS_NODE, HAS_CHANNEL, MEAN * NORMALIZE_TARGET, STD, SCALE, OFFSET,
            HAS_MISSING, False, DOUBLE, BLOCK_TIME, BLOCK_VALUE,
        )  # fmt: skip


def gather_windows(
    series: Tensor,
    start: Tensor,
    node: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    scale: Tensor | None,
    offset: Tensor | None,
    missing: int | None,
    fill: float | None,
    time_features: Tensor | None,
    channels: Sequence[int],
    normalize_target: bool,
    parallel: bool,
    x: Tensor,
    y: Tensor,
) -> None:
    """Launch: arguments as in the op's schema, all tensors on one device; x and y are written."""
    history, horizon, num_drawn = x.shape[1], y.shape[1], x.shape[2]
    windows, num_channels = start.numel(), series.shape[2]
    if windows == 0 or num_drawn == 0:
        return
    channels = tuple(channels)
    chosen = channels != tuple(range(len(channels)))
    x_value_tiles = triton.cdiv(num_drawn * x.shape[3], BLOCK_VALUE)
    y_value_tiles = triton.cdiv(num_drawn * y.shape[3], BLOCK_VALUE)
    # Short windows, history 1 above all, are not padded to 16 rows.
    block_time = min(BLOCK_TIME, triton.next_power_of_2(max(history, horizon)))
    x_tiles = triton.cdiv(history, block_time) * x_value_tiles
    y_tiles = triton.cdiv(horizon, block_time) * y_value_tiles
    # Absent tensors are never read; `start` stands in for them.
    _gather_windows_kernel[(windows * (x_tiles + y_tiles),)](
        series,
        start,
        start if node is None else node,
        start if mean is None else mean,
        start if std is None else std,
        start if scale is None else scale,
        start if offset is None else offset,
        x if time_features is None else time_features,
        _on_device(channels, series.device) if chosen else start,
        x,
        y,
        history,
        horizon,
        num_drawn,
        series.shape[0] - history - horizon,
        series.shape[1],
        0 if missing is None else missing,
        0.0 if fill is None else fill,
        x_value_tiles,
        x_tiles,
        y_value_tiles,
        y_tiles,
        *series.stride(),
        *x.stride(),
        *y.stride(),
        SERIES_CHANNELS=num_channels,
        NUM_FEATURES=x.shape[3] - num_channels,
        NUM_TARGETS=y.shape[3],
        HAS_NODE=node is not None,
        HAS_CHANNEL=chosen,
        MEAN=_kind(mean),
        STD=_kind(std),
        SCALE=_kind(scale),
        OFFSET=_kind(offset),
        HAS_MISSING=missing is not None,
        HAS_FILL=fill is not None,
        NORMALIZE_TARGET=int(normalize_target),
        DOUBLE=series.dtype == torch.float64,
        BLOCK_TIME=block_time,
        BLOCK_VALUE=BLOCK_VALUE,
        num_warps=NUM_WARPS,
        # raw * scale + offset rounds twice, as on the CPU.
        enable_fp_fusion=False,
        # Of the assertions only ours.
        sanitize_overflow=False,
    )


def _kind(table: Tensor | None) -> int:
    if table is None:
        return ABSENT
    return NUMBER if table.numel() == 1 else TABLE


# Kept for good: a captured graph reads them whenever it is replayed.
@functools.cache
def _on_device(channels: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(channels, dtype=torch.int64, device=device)
