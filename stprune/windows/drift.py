"""Stationarity of every window in one pass over the series, and the strata that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stprune.ops import _check
from stprune.ops._series import as_series
from stprune.ops.window_stats import LONGEST, deviation, from_sums, invert, without_null
from stprune.reference.window_stats import MOMENT_ROWS, SPAN
from stprune.windows.starts import WindowStarts

# Numbers copied at a time where the series cannot be read in place. 2^20 float32 are 4 MiB and stay in the last-level
# cache; ten times less pays Python's loop over the blocks.
BLOCK = 1 << 20

_OP = "stationarity"


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
    null_tolerance: float = 0.0,
    timestamps: Any = None,
    gaps: str = "drop",
) -> Tensor:
    """Drift of every window: how far its horizon lies from its history, in standard deviations of the nodes.

    It is a property of the data, not of a model, so it is computed once. Channels count as further nodes: leave out
    time features (``series[..., :1]``) and channels that are never predicted. It is the drift of `window_stats`, with the
    same bits, for any dtype, with a mask and over part of the rows: sums are float64 and never subtracted from each
    other, so an offset of 1e6 or a drop in scale costs no accuracy, and every machine, thread count and rank finds the
    same strata. O(time * nodes) time whatever the window's length. float32 and float64 series are read in place; others,
    and those with a mask or a node stride, are copied in blocks of 2^20 numbers, or of the rows of two windows by at most
    4,096 columns where that is more.

    Args:
        series: [time, node] or [time, node, channel], any real dtype and unit; NaN is missing. Not modified.
        history: Input steps of a window, at least 1.
        horizon: Target steps of a window, at least 1.
        stride: Rows between the starts of neighbouring windows, at least 1.
        start: First row that may be used.
        stop: Row behind the last that may be used; None is the end. The nodes' deviations are taken over these rows.
        mask: Bool, shape of ``series``; False removes an entry from every mean. Not modified.
        null_value: Entries equal to it are removed too (0.0 in traffic data); in the series' unit.
        null_tolerance: Entries at most so far from ``null_value`` are removed, at least 0, in the series' unit.
        timestamps, gaps: As in `WindowDataset`.

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
    cube = as_series(_OP, series)
    past, future = (_check.integer(_OP, name, rows, 1) for name, rows in (("history", history), ("horizon", horizon)))
    starts = WindowStarts(
        _OP, cube.shape[0], length=past + future, stride=stride, start=start, stop=stop, timestamps=timestamps, gaps=gaps
    )
    null = _check.null(_OP, null_value, null_tolerance)
    valid_cube = None if mask is None else _as_mask(mask, tuple(series.shape))

    if past + future > LONGEST:
        raise ValueError(f"{_OP}: history + horizon must be at most {LONGEST}, got {past + future}")
    source = _Source(cube, valid_cube, null, starts.start, starts.stop)
    total: Tensor | None = None
    # Spans of columns are summed in their order: the same bits as all columns at once.
    for left in range(0, source.columns, SPAN):
        right = min(left + SPAN, source.columns)
        inverse = invert(deviation(source.moments(left, right)))
        sums = torch.cat(
            [
                source.sums(rows, past, future, starts.stride, inverse, left, right)
                for rows in source.cuts(starts.stride, past + future)
            ]
        )
        total = sums if total is None else total + sums
    assert total is not None
    drift = from_sums(total[None], (past + future) * source.columns).drift
    return drift if starts.kept is None else drift[starts.kept]


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
    strata = _check.integer("stratify", "num_strata", num_strata, 1)
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


class _Source:
    """Rows [first, last) of the series as blocks that the compiled kernels read."""

    def __init__(self, cube: Any, mask: Any, null: tuple[float | None, float], first: int, last: int) -> None:
        self.cube, self.mask, self.null = cube, mask, null
        self.first, self.last = first, last
        self.columns = cube.shape[1] * cube.shape[2]
        # With a tolerance NaN takes the place of null values; without one the kernels look for them.
        self.exact = null[0] if null[1] == 0.0 else None
        self.in_place = mask is None and self.exact == null[0] and _is_readable(cube)

    def read(self, begin: int, end: int, left: int, right: int) -> Tensor:
        """Rows [begin, end) after the first and some columns, [rows, columns] float32 or float64, NaN where masked out."""
        return without_null(_block(self.cube, self.mask, self.first + begin, self.first + end, left, right), *self.null)[0]

    def moments(self, left: int, right: int) -> Tensor:
        """What the columns' deviations are made of, [blocks, 4, columns]."""
        rows = self.last - self.first
        # Whole blocks of moments, so that no cut shows in them.
        step = rows if self.in_place else max(1, BLOCK // (right - left) // MOMENT_ROWS) * MOMENT_ROWS
        parts = []
        for begin in range(0, rows, step):
            block = self.read(begin, min(begin + step, rows), left, right)
            part = torch.ops.stprune.node_moments(block, self.exact)
            if not bool(part[:, 2:].isfinite().all()):
                self._refuse_infinite(block, begin)
            parts.append(part)
        return torch.cat(parts)

    def cuts(self, stride: int, window: int) -> Iterator[tuple[int, int]]:
        """(begin, end) of rows whose windows are measured together: no window is in two of them."""
        rows = self.last - self.first
        windows = (rows - window) // stride + 1
        width = min(self.columns, SPAN)
        # Neighbouring cuts share window - stride rows; twice the window keeps what is read twice below the half.
        height = rows if self.in_place else max(BLOCK // width, 2 * window)
        chunk = (max(height, window) - window) // stride + 1
        for first in range(0, windows, chunk):
            yield first * stride, (min(first + chunk, windows) - 1) * stride + window

    def sums(
        self, rows: tuple[int, int], past: int, future: int, stride: int, inverse: Tensor, left: int, right: int
    ) -> Tensor:
        """Sums over the columns [windows, 8] of the windows in the rows."""
        block = self.read(*rows, left, right)
        phase = rows[0] % (past + future)
        sums, _ = torch.ops.stprune.window_stats(block, past, future, stride, phase, self.exact, inverse, False)
        return sums[0]

    def _refuse_infinite(self, block: Tensor, begin: int) -> None:
        infinite = block.isinf()
        if self.exact is not None:
            infinite &= block != self.exact
        if bool(infinite.any()):
            row, column = infinite.nonzero()[0].tolist()
            raise ValueError(
                f"{_OP}: series must be finite or NaN, got {float(block[row, column])} in row {self.first + begin + row}"
            )


def _is_readable(cube: Any) -> bool:
    """Whether the compiled kernels can read the series where it lies."""
    if isinstance(cube, Tensor):
        channels, nodes = cube.shape[2], cube.shape[1]
        dense = (channels == 1 or cube.stride(2) == 1) and (nodes == 1 or cube.stride(1) == channels)
        return dense and cube.device.type == "cpu" and cube.dtype in (torch.float32, torch.float64)
    strides = tuple(stride / cube.itemsize for stride in cube.strides)
    dense = (cube.shape[2] == 1 or strides[2] == 1) and (cube.shape[1] == 1 or strides[1] == cube.shape[2])
    return dense and strides[0] >= 0 and cube.flags.writeable and cube.dtype in (np.float32, np.float64)


def _block(cube: Any, mask: Any, first: int, last: int, left: int, right: int) -> Tensor:
    """Rows [first, last) and columns [left, right), columns being (node, channel) pairs; a copy where one is needed."""
    channels = cube.shape[2]
    # Whole nodes are read, then cut: only these rows of these nodes are ever copied.
    nodes = slice(left // channels, -(-right // channels))
    begin = left - nodes.start * channels
    block = _flat(cube[first:last, nodes])[:, begin : begin + right - left]
    if mask is not None:
        kept = _flat(mask[first:last, nodes])[:, begin : begin + right - left]
        block = torch.where(kept != 0, block, torch.nan)
    return block if block.shape[1] == 1 or block.stride(1) == 1 else block.contiguous()


def _flat(block: Any) -> Tensor:
    """[rows, columns] on the CPU: bool stays, float32 and what it holds exactly is float32, all else float64."""
    if isinstance(block, Tensor):
        tensor = block.detach().cpu()
    else:
        array = np.asarray(block)
        exact = array.dtype in (np.float32, np.bool_)
        if not exact:
            array = array.astype(np.float32 if array.dtype.itemsize <= 2 else np.float64, copy=False)
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if tensor.dtype not in (torch.float32, torch.float64, torch.bool):
        tensor = tensor.to(torch.float32 if tensor.element_size() <= 2 else torch.float64)
    return tensor.reshape(tensor.shape[0], -1)


def _as_mask(mask: Any, shape: tuple[int, ...]) -> Any:
    dtype = getattr(mask, "dtype", None)
    if dtype != torch.bool and dtype != np.bool_:
        raise TypeError(f"{_OP}: mask must be bool, got {dtype or type(mask).__name__}")
    if tuple(mask.shape) != shape:
        raise ValueError(f"{_OP}: mask must have the shape of series, {shape}, got {tuple(mask.shape)}")
    return mask if mask.ndim == 3 else mask[:, :, None]
