"""window_stats: level, spread, drift, trend, memory and gaps of every window of a series, in one pass."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from stprune.ops import _check
from stprune.ops._registry import by_triton, define, define_cuda
from stprune.reference import window_stats as reference
from stprune.reference.pruned_loss import kept_entries

LONGEST = 1 << 16
"""Rows of the longest window."""

# Exactly representable in the dtype they are measured in.
_WIDENED = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.int8: torch.float32,
    torch.uint8: torch.float32,
    torch.int16: torch.float32,
    torch.int32: torch.float64,
}


class WindowStats(NamedTuple):
    """What `window_stats` measures: float32 [num_windows], or [num_windows, node, ...] per node.

    Attributes:
        mean: mean over the whole window, in the series' unit.
        variance: population variance over the whole window.
        drift: distance of the horizon's mean from the history's in standard deviations of the node (eq. 9).
        trend: slope of the least-squares line over the whole window, per step.
        autocorrelation: at lag 1, over the whole window, in [-1, 1].
        missing: share of the window's entries that are missing, in [0, 1].
    """

    mean: torch.Tensor
    variance: torch.Tensor
    drift: torch.Tensor
    trend: torch.Tensor
    autocorrelation: torch.Tensor
    missing: torch.Tensor


_Two = tuple[torch.Tensor, torch.Tensor]


def _fake(
    series: torch.Tensor,
    history: int,
    horizon: int,
    stride: int,
    phase: int,
    null_value: float | None,
    inverse_std: torch.Tensor,
    per_node: bool,
) -> _Two:
    rows, columns = series.shape
    windows = max(0, (rows - history - horizon) // stride + 1)
    infinite = series.new_empty((1,), dtype=torch.bool)
    if per_node:
        return series.new_empty((6, windows, columns), dtype=torch.float32), infinite
    spans = -(-columns // reference.SPAN)
    return series.new_empty((spans, windows, len(reference.SUMS)), dtype=torch.float64), infinite


def _moments_fake(series: torch.Tensor, null_value: float | None) -> torch.Tensor:
    blocks = -(-series.shape[0] // reference.MOMENT_ROWS)
    return series.new_empty((blocks, 4, series.shape[1]), dtype=torch.float64)


define(
    "window_stats(Tensor series, int history, int horizon, int stride, int phase, float? null_value, "
    "Tensor inverse_std, bool per_node) -> (Tensor, Tensor)",
    reference.window_stats,
    _fake,
)
define_cuda("window_stats", by_triton("window_stats", reference.window_stats))
define("node_moments(Tensor series, float? null_value) -> Tensor", reference.node_moments, _moments_fake)
define_cuda("node_moments", by_triton("node_moments", reference.node_moments))


def window_stats(
    series: torch.Tensor | np.ndarray[Any, Any],
    *,
    history: int,
    horizon: int,
    stride: int = 1,
    null_value: float | None = None,
    null_tolerance: float = 0.0,
    per_node: bool = False,
    node_std: torch.Tensor | np.ndarray[Any, Any] | None = None,
) -> WindowStats:
    """Six statistics of every window of a series, whatever the windows' length in O(time * nodes).

    Window i has the rows i * stride .. i * stride + history + horizon. Mean, variance, trend, autocorrelation and missing
    share are those of all its rows; the drift compares its first `history` rows with its last `horizon`. Missing entries
    (NaN and `null_value`) count nowhere:

    - trend: slope of the least-squares line through the valid entries at their places; 0 with fewer than two of them;
    - autocorrelation: sum over neighbouring valid entries of the product of their deviations from the window's mean,
      over the sum of all squared deviations; it lies in [-1, 1], and gaps bring it nearer to 0;
    - drift: |mean of the horizon - mean of the history| / standard deviation of the node over the series.

    A window whose valid entries are all equal has variance, trend and autocorrelation exactly 0. No threshold is
    involved: values are summed about one of the window's own, so that they cancel exactly where they are equal. For the
    same reason the variance of every window, whatever precedes it, is right to float32 rounding: an offset of 1e6 or a
    drop of the scale by 1e6 inside the series costs nothing, as sums are never formed by subtracting old values.

    Aggregated statistics are means over the nodes that have a value: those with a valid entry in the window, for the
    drift those with valid entries in both parts and a positive deviation. The missing share is that of all entries.

    A window's result depends on its own rows and on its first row's number modulo history + horizon alone: the same
    bits for any number of threads, any instruction set and any way of cutting the series (`score_dataset`).

    Args:
        series: [time, node] or [time, node, channel] (channels count as further nodes), tensor or array, float32,
            float64, bfloat16, float16 or an integer of at most 32 bits; not modified.
        history: rows before the cut of a window, at least 1.
        horizon: rows after it, at least 0; with 0 there is no drift. history + horizon is at most 65,536.
        stride: rows between the starts of neighbouring windows, at least 1.
        null_value: entries equal to it, in the series' dtype, are missing too (0.0 in traffic data).
        null_tolerance: how far from null_value an entry is still missing, >= 0, for series that went through a scaler and
            back (the field uses 5e-5). Above 0 the series is copied.
        per_node: one value for every window and node, instead of the mean over nodes.
        node_std: [node] or [node, channel], what the drift is measured in, at least 0; a node with 0 or NaN has no drift.
            None takes the population standard deviation of the node over the whole series (one more pass).

    Returns:
        WindowStats, on the device of `series`, windows in the order of `WindowDataset`; NaN where nothing is known.

    Raises:
        TypeError: `series` is no tensor or array of one of those dtypes, or an integer argument is none.
        ValueError: `series` has not two or three dimensions, is empty, holds an infinite valid entry or fewer rows than
            a window; a length is out of range; `node_std` has another shape or a negative entry.

    Example:
        >>> import torch
        >>> from stprune.ops import window_stats
        >>> ramp = torch.tensor([[0.0], [1.0], [2.0], [3.0], [float("nan")], [5.0]])
        >>> stats = window_stats(ramp, history=2, horizon=2, node_std=torch.ones(1))
        >>> stats.mean.tolist(), stats.trend.tolist(), stats.drift.tolist(), stats.missing.tolist()
        ([1.5, 2.0, 3.3333332538604736], [1.0, 1.0, 1.0], [2.0, 1.5, 2.5], [0.0, 0.25, 0.25])

    Source:
        Drift: eq. 9. Autocorrelation: Box and Jenkins, Time Series Analysis, section 2.1. Windows as a suffix of one block
        and a prefix of the next: van Herk, Pattern Recognition Letters 13 (1992), there for maxima; here for sums.
    """
    op = "window_stats"
    columns, shape = as_columns(op, series)
    history = _check.integer(op, "history", history, 1, LONGEST)
    horizon = _check.integer(op, "horizon", horizon, 0, LONGEST - history)
    stride = _check.integer(op, "stride", stride, 1, 2**62)
    null_value, null_tolerance = _check.null(op, null_value, null_tolerance)
    columns, null_value = without_null(columns, null_value, null_tolerance)
    if columns.shape[0] < history + horizon:
        raise ValueError(
            f"{op}: series must have at least history + horizon = {history + horizon} rows, got {columns.shape[0]}"
        )
    if node_std is not None:
        std = torch.from_numpy(as_deviation(op, node_std, shape)).to(columns.device)
    if horizon == 0:
        std = columns.new_zeros(columns.shape[1], dtype=torch.float64)
    elif node_std is None:
        std = deviation(torch.ops.stprune.node_moments(columns, null_value))
    inverse = invert(std)
    values, infinite = torch.ops.stprune.window_stats(columns, history, horizon, stride, 0, null_value, inverse, bool(per_node))
    if per_node:
        mean, variance, trend, autocorrelation, drift, missing = values.view(6, -1, *shape).unbind(0)
        stats = WindowStats(mean, variance, drift, trend, autocorrelation, missing)
    else:
        stats = from_sums(values, (history + horizon) * columns.shape[1])
    # Last, as a GPU is waited for here.
    if bool(infinite):
        raise infinite_error(op, columns)
    return stats


def without_null(series: torch.Tensor, null_value: float | None, null_tolerance: float) -> tuple[torch.Tensor, float | None]:
    """A series, and the null value that is left for the ops to look for: with a tolerance NaN stands for what is missing."""
    if null_value is None or null_tolerance == 0.0:
        return series, null_value
    return torch.where(kept_entries(series, None, null_value, null_tolerance), series, torch.nan), None


def from_sums(sums: torch.Tensor, entries: int) -> WindowStats:
    """Means over nodes from sums [spans, num_windows, 8]; `entries` is how many a window has with all its nodes."""
    # In order: torch.sum may cut a long dimension by the number of threads.
    total = sums[0]
    for span in sums[1:]:
        total = total + span
    nodes, drifts, valid = total[:, 5:6], total[:, 6], total[:, 7]
    mean, variance, trend, autocorrelation = (total[:, :4] / nodes).float().T.contiguous().unbind(0)
    missing = (1.0 - valid / entries).float()
    return WindowStats(mean, variance, (total[:, 4] / drifts).float(), trend, autocorrelation, missing)


def deviation(moments: torch.Tensor) -> torch.Tensor:
    """Population standard deviation of every column [columns] from moments [blocks, 4, columns]; 0 where constant."""
    count, centre, total, square = moments.unbind(1)
    there, size = count > 0, count.clamp(min=1.0)
    mean = torch.where(there, centre + total / size, 0.0)
    # About the mean of the first block with an entry, so that constant columns give exact zeros.
    step = torch.where(there, mean - mean.gather(0, there.to(torch.uint8).argmax(0, keepdim=True)), 0.0)
    entries = _in_order(count).clamp(min=1.0)
    offset = _in_order(count * step) / entries
    # Infinite entries give NaN here and are refused later, where the row is known.
    squares = (square - total * total / size).clamp(min=0.0) + count * (step - offset).square()
    return (_in_order(squares) / entries).sqrt()


def _in_order(values: torch.Tensor) -> torch.Tensor:
    """Sum over the first dimension; on the CPU one by one, so the same bits however the series was cut."""
    return values.sum(0) if values.is_cuda else values.cumsum(0)[-1]


def invert(std: torch.Tensor) -> torch.Tensor:
    """[columns] float64: 1 / std, 0 where std is 0 or NaN."""
    return torch.where(std > 0, 1.0 / std, 0.0)


def as_columns(op: str, series: Any) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The series as [time, column] float32 or float64 with contiguous columns, and its shape behind the time."""
    if isinstance(series, np.ndarray):
        if series.dtype.kind not in "fiu" or not series.dtype.isnative:
            raise TypeError(f"{op}: series must hold real numbers in native byte order, got {series.dtype}")
        series = _as_tensor(series) if series.dtype.name in _NUMPY else series
    if not isinstance(series, torch.Tensor) or series.dtype not in _WIDENED:
        got = getattr(series, "dtype", type(series).__name__)
        raise TypeError(f"{op}: series must be a tensor or array of {', '.join(_NUMPY)} or bfloat16, got {got}")
    if series.dim() not in (2, 3):
        raise ValueError(f"{op}: series must be [time, node] or [time, node, channel], got {tuple(series.shape)}")
    if series.numel() == 0:
        raise ValueError(f"{op}: series must not be empty, got shape {tuple(series.shape)}")
    flat = series.detach().reshape(series.shape[0], math.prod(series.shape[1:])).to(_WIDENED[series.dtype])
    if flat.shape[1] > 1 and flat.stride(1) != 1:
        flat = flat.contiguous()
    return flat, tuple(series.shape[1:])


_NUMPY = ("float32", "float64", "float16", "int8", "uint8", "int16", "int32")


class _Readable:
    """An array's memory without its write protection, of which torch would warn: it is only read here."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.__array_interface__["data"][0], False)}


def _as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Readable(array)))


def as_deviation(op: str, node_std: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """[columns] float64 deviations, checked against the series' shape behind the time."""
    if not isinstance(node_std, (torch.Tensor, np.ndarray)):
        raise TypeError(f"{op}: node_std must be a tensor or an array, got {type(node_std).__name__}")
    std = node_std.detach().cpu().double().numpy() if isinstance(node_std, torch.Tensor) else np.asarray(node_std, float)
    if std.size != math.prod(shape) or std.shape not in (shape, shape[:1], (math.prod(shape),)):
        raise ValueError(f"{op}: node_std must have the shape {shape}, got {tuple(std.shape)}")
    if (std < 0).any() or np.isinf(std).any():
        raise ValueError(f"{op}: node_std must be finite and at least 0, got {std[(std < 0) | np.isinf(std)][0]:g}")
    return std.reshape(-1)


def infinite_error(op: str, columns: torch.Tensor) -> ValueError:
    """The error that names the first infinite entry."""
    row = int(columns.isinf().any(1).nonzero()[0])
    return ValueError(f"{op}: series must be finite or NaN, got an infinite entry in row {row}")
