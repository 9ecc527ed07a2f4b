"""Stationarity of every window in one pass over the series, and the strata that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stprune.windows._check import as_length, as_range, as_series

Array = np.ndarray[Any, Any]

# Numbers of one working block. 2^20 float64 are 8 MiB, so the half dozen blocks alive at once stay near the last-level
# cache; ten times more is no faster and ten times the memory, ten times less pays Python's loop over the blocks.
BLOCK = 1 << 20


def stationarity(
    series: Tensor | np.ndarray[Any, Any],
    *,
    history: int,
    horizon: int,
    stride: int = 1,
    start: int = 0,
    stop: int | None = None,
    mask: Tensor | np.ndarray[Any, Any] | None = None,
    null_value: float | None = None,
) -> Tensor:
    """Drift of every window: how far its horizon lies from its history, in standard deviations of the nodes.

    It is a property of the data, not of a model, so it is computed once. Channels count as further nodes: leave out
    time features (``series[..., :1]``) and channels that are never predicted. The sums are float64 and never subtracted
    from each other, so an offset of 1e6 or a drop in scale costs no accuracy; they are formed in one thread in a fixed
    order, so that every machine and rank finds the same strata. O(time * nodes) time whatever the window's length, and
    a few blocks of 8 MiB beside the result; memory maps are read in blocks.

    Args:
        series: [time, node] or [time, node, channel], any real dtype and unit; NaN is missing. Not modified.
        history: Input steps of a window, at least 1.
        horizon: Target steps of a window, at least 1.
        stride: Rows between the starts of neighbouring windows, at least 1.
        start: First row that may be used.
        stop: Row behind the last that may be used; None is the end. The nodes' deviations are taken over these rows.
        mask: Bool, shape of ``series``; False removes an entry from every mean. Not modified.
        null_value: Entries equal to it are removed too (0.0 in traffic data).

    Returns:
        [num_windows] float32 on the CPU, at least 0, dimensionless, in the order of `WindowDataset` with the same
        arguments. A node counts in a window when it has valid entries in both parts and is not constant; NaN where no
        node counts.

    Raises:
        ValueError: A length is below 1, rows [start, stop) lie outside the series or hold no window, ``mask`` has
            another shape, or a valid entry is infinite.
        TypeError: ``series`` is no array of real numbers, ``mask`` is not bool, or a length is no int.

    Example:
        >>> import torch
        >>> from stprune.windows import stationarity
        >>> stationarity(torch.tensor([[0.0], [0.0], [0.0], [1.0], [1.0], [1.0]]), history=2, horizon=2)
        tensor([1., 2., 1.])

    Source:
        Our definition, eq. 9.
    """
    cube = as_series("stationarity", series)
    past, future = as_length("stationarity", "history", history), as_length("stationarity", "horizon", horizon)
    step = as_length("stationarity", "stride", stride)
    first, last = as_range("stationarity", cube.shape[0], start, stop, past + future)
    valid_cube = None if mask is None else _as_mask(mask, tuple(series.shape))

    windows = (last - first - past - future) // step + 1
    total, count = np.zeros(windows), np.zeros(windows, dtype=np.int64)
    columns = cube.shape[1] * cube.shape[2]
    # Columns are cut only when even one window of all of them exceeds a block: cutting rows reads memory in order.
    width = max(1, min(columns, BLOCK // (past + future)))
    for left in range(0, columns, width):
        source = _Columns(cube, valid_cube, null_value, left, min(left + width, columns))
        std = _deviation(source, first, last)
        for window, chunk in _chunks(windows, step, past + future, source.width):
            row = first + window * step
            values, valid = source.read(row, row + (chunk - 1) * step + past + future)
            drift, counted = _drift(values, valid, past, future, step, std)
            total[window : window + chunk] += drift
            count[window : window + chunk] += counted
    with np.errstate(invalid="ignore"):
        return torch.from_numpy((total / count).astype(np.float32))


def stratify(values: Tensor, *, num_strata: int = 8) -> Tensor:
    """Labels that cut values into strata of nearly equal size, by quantile.

    Args:
        values: [n] float or integer, for instance from `stationarity`. Not modified. NaN and +inf are the largest.
        num_strata: Strata asked for, at least 1; fewer come out where ties leave fewer cuts.

    Returns:
        [n] int64 on the device of ``values``: 0, 1, ... without a gap, ascending with the value. Equal values always
        share a label; a cut that falls into a run of ties moves to the beginning of the run. NaN joins the last stratum
        (the windows nothing is known about go with the most drifting ones) and moves no cut. O(n log n).

    Raises:
        ValueError: ``values`` is not 1-D or ``num_strata`` is below 1.
        TypeError: ``values`` is not a float or integer tensor, or ``num_strata`` no int.

    Example:
        >>> import torch
        >>> from stprune.windows import stratify
        >>> stratify(torch.tensor([0.1, 0.9, 0.4, 0.4, float("nan"), 0.2]), num_strata=2)
        tensor([0, 1, 1, 1, 1, 0])

    Source:
        Our definition: the strata k of eq. 10.
    """
    if not isinstance(values, Tensor) or values.is_complex() or values.dtype == torch.bool:
        kind = getattr(values, "dtype", type(values).__name__)
        raise TypeError(f"stratify: values must be a float or integer tensor, got {kind}")
    if values.ndim != 1:
        raise ValueError(f"stratify: values must be [n], got shape {tuple(values.shape)}")
    strata = as_length("stratify", "num_strata", num_strata)
    known = values.detach() if not values.is_floating_point() else values.detach()[~values.isnan()]
    if known.numel() == 0:
        return torch.zeros(values.shape, dtype=torch.int64, device=values.device)
    ordered = known.sort().values
    # More cuts than values repeat each other and fall away, so no more than n are made.
    cuts = min(strata, known.numel())
    places = [j * known.numel() // cuts for j in range(1, cuts)]
    edges = ordered[torch.tensor(places, dtype=torch.int64, device=values.device)].unique()
    # A cut at the minimum would leave stratum 0 empty.
    edges = edges[edges > ordered[0]]
    labels = torch.bucketize(values.detach(), edges, right=True)
    return torch.where(values != values, edges.numel(), labels)


class _Columns:
    """Blocks of some columns of the series as float64 with the missing entries named."""

    def __init__(self, cube: Any, mask: Any, null_value: float | None, left: int, right: int) -> None:
        self.cube, self.mask, self.null_value = cube, mask, null_value
        self.left, self.right = left, right
        self.width = right - left

    def read(self, first: int, last: int) -> tuple[Array, Array | None]:
        """Rows [first, last): values [rows, width] with 0 where missing, and validity, None when all are valid."""
        values = _block(self.cube, first, last, self.left, self.right)
        valid = ~np.isnan(values)
        if self.mask is not None:
            valid &= _block(self.mask, first, last, self.left, self.right) != 0
        if self.null_value is not None:
            valid &= values != self.null_value
        if valid.all():
            return values, None
        values[~valid] = 0.0
        return values, valid


def _block(cube: Any, first: int, last: int, left: int, right: int) -> Array:
    """A float64 copy of rows [first, last) and columns [left, right), columns being (node, channel) pairs."""
    channels = cube.shape[2]
    # Whole nodes are read, then cut: only these rows of these nodes are ever copied.
    nodes = slice(left // channels, -(-right // channels))
    block = cube[first:last, nodes]
    if isinstance(block, Tensor):
        block = block.detach().to("cpu", torch.float64).numpy()
    flat = np.asarray(block).reshape(last - first, -1)
    begin = left - nodes.start * channels
    return np.array(flat[:, begin : begin + right - left], dtype=np.float64)


def _chunks(windows: int, stride: int, window: int, width: int) -> Iterator[tuple[int, int]]:
    """(first window, number of windows) so that the rows they span fill about one block."""
    rows = max(window, BLOCK // width)
    # Neighbouring chunks share window - stride rows; twice the window keeps what is read twice below the half.
    chunk = max(1, (max(rows, 2 * window) - window) // stride + 1)
    for first in range(0, windows, chunk):
        yield first, min(chunk, windows - first)


def _deviation(source: _Columns, first: int, last: int) -> Array:
    """Population standard deviation of every column over its valid entries; 0 where constant or empty."""
    rows = max(1, BLOCK // source.width)
    count, total = np.zeros(source.width), np.zeros(source.width)
    low, high = np.full(source.width, np.inf), np.full(source.width, -np.inf)
    for row in range(first, last, rows):
        values, valid = source.read(row, min(row + rows, last))
        if np.isinf(values).any():
            place, column = np.argwhere(np.isinf(values))[0]
            raise ValueError(f"stationarity: series must be finite or NaN, got {values[place, column]} in row {row + place}")
        total += values.sum(axis=0)
        count += len(values) if valid is None else valid.sum(axis=0)
        shown = values if valid is None else np.where(valid, values, np.inf)
        low = np.minimum(low, shown.min(axis=0))
        high = np.maximum(high, values.max(axis=0) if valid is None else np.where(valid, values, -np.inf).max(axis=0))
    # A second pass around the mean: the one-pass formula loses every digit at an offset of 1e6.
    mean = total / np.maximum(count, 1)
    squares = np.zeros(source.width)
    for row in range(first, last, rows):
        values, valid = source.read(row, min(row + rows, last))
        values -= mean
        if valid is not None:
            values[~valid] = 0.0
        squares += np.square(values, out=values).sum(axis=0)
    # A constant is recognised by its extremes: its sum of squares is rounding noise, not 0.
    return np.where(high > low, np.sqrt(squares / np.maximum(count, 1)), 0.0)


def _drift(values: Array, valid: Array | None, past: int, future: int, stride: int, std: Array) -> tuple[Array, Array | int]:
    """Sum over the nodes that count of |mean y - mean x| / std, and their number, for every window of the block."""
    windows = len(values) - past - future + 1
    x = _sliding_sum(values, past)[:windows:stride]
    y = _sliding_sum(values, future)[past : past + windows : stride]
    measurable = std > 0
    if valid is None:
        difference = np.abs(y / future - x / past)
        return (difference[:, measurable] / std[measurable]).sum(axis=1), int(measurable.sum())
    ones = valid.astype(np.float64)
    num_x = _sliding_sum(ones, past)[:windows:stride]
    num_y = _sliding_sum(ones, future)[past : past + windows : stride]
    counts = (num_x > 0) & (num_y > 0) & measurable
    difference = np.abs(y / np.maximum(num_y, 1) - x / np.maximum(num_x, 1)) / np.where(measurable, std, 1.0)
    return np.where(counts, difference, 0.0).sum(axis=1), counts.sum(axis=1)


def _sliding_sum(values: Array, length: int) -> Array:
    """Sums of ``length`` neighbouring rows, [rows - length + 1, width], in three additions per entry.

    Rows are grouped in blocks of ``length``; a window is the tail of one block and the head of the next (van Herk's
    scheme for running maxima). Nothing is subtracted, so a sum is as accurate as adding its own rows: the usual
    difference of two running totals loses the small values that follow large ones.
    """
    rows, width = values.shape
    if length == 1:
        return values
    blocks = -(-rows // length)
    heads = np.zeros((blocks, length, width))
    heads.reshape(-1, width)[:rows] = values
    tails = heads.copy()
    for place in range(1, length):
        heads[:, place] += heads[:, place - 1]
        tails[:, length - 1 - place] += tails[:, length - place]
    sums = tails.reshape(-1, width)[: rows - length + 1]
    # A window that begins with its block is that block's tail alone.
    ends = heads.reshape(-1, width)[length - 1 : rows]
    ends[::length] = 0.0
    return sums + ends


def _as_mask(mask: Any, shape: tuple[int, ...]) -> Any:
    dtype = getattr(mask, "dtype", None)
    if dtype != torch.bool and dtype != np.bool_:
        raise TypeError(f"stationarity: mask must be bool, got {dtype or type(mask).__name__}")
    if tuple(mask.shape) != shape:
        raise ValueError(f"stationarity: mask must have the shape of series, {shape}, got {tuple(mask.shape)}")
    return mask if mask.ndim == 3 else mask[:, :, None]
