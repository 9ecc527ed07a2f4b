"""score_dataset: the statistics of every window of a series that does not fit into memory, on Dask."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import torch

from stprune.ops import WindowStats, _check, window_stats
from stprune.ops.window_stats import (
    LONGEST,
    as_columns,
    as_deviation,
    deviation,
    from_sums,
    infinite_error,
    invert,
    without_null,
)
from stprune.reference.window_stats import MOMENT_ROWS, SPAN, SUMS
from stprune.windows.starts import WindowStarts

Array = np.ndarray[Any, Any]
Null = tuple[float | None, float]

_OP = "score_dataset"


def score_dataset(
    dataset: Any,
    *,
    history: int,
    horizon: int,
    variable: str | None = None,
    time_dim: str = "time",
    stride: int = 1,
    null_value: float | None = None,
    null_tolerance: float = 0.0,
    gaps: str = "drop",
    per_node: bool = False,
    node_std: Any = None,
    compute: bool = True,
) -> Any:
    """`window_stats` over an xarray object, chunk by chunk on whatever Dask scheduler is active.

    The result has the very bits that `window_stats` gives for the same series in memory, however it is chunked and
    wherever the chunks are worked on. Chunks along time get the next history + horizon - 1 rows from their neighbour
    (dask.array.overlap); those that are shorter than this are joined with their neighbour first, and chunks along the
    other dimensions become multiples of 4,096 columns, so a worker needs memory for a few such chunks. The series is read
    twice, once for the nodes' standard deviations; give `node_std` to read it once. With a dask.distributed client,
    tasks of a worker that dies run again elsewhere.

    Args:
        dataset: xarray Dataset or DataArray; backed by Dask (`xarray.open_zarr`, `.chunk()`), or in memory. Not modified.
        history: rows before the cut of a window, at least 1.
        horizon: rows after it, at least 0.
        variable: name of the Dataset's variable; None takes its only one.
        time_dim: name of the dimension that windows run along; all others are nodes.
        stride: rows between the starts of neighbouring windows, at least 1.
        null_value: entries equal to it are missing, as NaN is; in the series' unit.
        null_tolerance: entries at most so far from `null_value` are missing, at least 0, in the series' unit.
        gaps: what happens to windows over a gap in the coordinate `time_dim`, where that is datetime64: "drop", "keep" or
            "raise", as in `WindowDataset`.
        per_node: one value for every window and node instead of the mean over nodes.
        node_std: [other dimensions] what the drift is measured in; None takes the deviation over the whole series.
        compute: False leaves the values of `per_node` lazy, to be stored with `.to_zarr`; the others are small and always
            computed.

    Returns:
        xarray Dataset with the float32 variables of `WindowStats` over the dimension "window" (and the other dimensions
        of the series when `per_node`), with the coordinates of the series and `start`, the windows' first rows.

    Raises:
        TypeError: `dataset` is no xarray object, its dtype is none that `window_stats` takes, or an argument has a wrong
            type.
        ValueError: the variable or the dimension is not in `dataset`, the series has fewer rows than a window or holds an
            infinite entry, times do not increase, or a number is out of range.
        RuntimeError: Dask is not installed and the series is not in memory.

    Example:
        >>> import numpy as np, xarray
        >>> from stprune.windows import score_dataset
        >>> series = xarray.DataArray(np.arange(12.0).reshape(6, 2), dims=("time", "node"))
        >>> stats = score_dataset(series, history=2, horizon=2)
        >>> stats["mean"].values, stats["trend"].values
        (array([3.5, 5.5, 7.5], dtype=float32), array([2., 2., 2.], dtype=float32))

    Source:
        See `window_stats`.
    """
    array = _as_array(dataset, variable, time_dim)
    history = _check.integer(_OP, "history", history, 1, LONGEST)
    horizon = _check.integer(_OP, "horizon", horizon, 0, LONGEST - history)
    stride = _check.integer(_OP, "stride", stride, 1, 2**62)
    null = _check.null(_OP, null_value, null_tolerance)
    rows, shape, length = array.shape[0], array.shape[1:], history + horizon
    if rows < length:
        raise ValueError(f"{_OP}: dataset must have at least history + horizon = {length} rows, got {rows}")
    starts = WindowStarts(_OP, rows, length=length, stride=stride, timestamps=_times(array), gaps=gaps)
    std = None if node_std is None else as_deviation(_OP, _values(node_std), shape)
    if not _is_lazy(array.data):
        flat = np.asarray(array.data).reshape(rows, -1)
        options: dict[str, Any] = {"history": history, "horizon": horizon, "stride": stride, "null_value": null[0]}
        stats = window_stats(_native(flat), null_tolerance=null[1], per_node=per_node, node_std=std, **options)
        return _labelled(array, {name: value.numpy() for name, value in stats._asdict().items()}, starts, per_node)

    series = _Flat(array.data.reshape(rows, -1) if array.ndim != 2 else array.data, length)
    if std is None:
        std = series.deviation(null) if horizon else np.zeros(math.prod(shape))
    values = series.measure(history, horizon, stride, null, std, per_node)
    if per_node:
        names = ("mean", "variance", "trend", "autocorrelation", "drift", "missing")
        lazy = {name: values[:, :, i].reshape(-1, *shape) for i, name in enumerate(names)}
        result = _labelled(array, {name: lazy[name] for name in WindowStats._fields}, starts, True)
        return result.compute() if compute else result
    sums = torch.from_numpy(np.ascontiguousarray(values.compute()))
    means = from_sums(sums[None], length * math.prod(shape))
    return _labelled(array, {name: value.numpy() for name, value in means._asdict().items()}, starts, False)


class _Flat:
    """A Dask array [time, column], and the two passes over it."""

    def __init__(self, data: Any, length: int) -> None:
        self.dask = _require_dask()
        rows, columns = data.shape
        width = max(SPAN, max(data.chunks[1]) // SPAN * SPAN)
        self.widths = tuple(min(width, columns - first) for first in range(0, columns, width))
        self.heights = _joined(data.chunks[0], max(1, length - 1))
        self.data, self.length, self.rows = data, length, rows

    def deviation(self, null: Null) -> Array:
        """Standard deviation of every column, from moments of blocks that do not depend on the chunks."""
        height = max(1, max(self.heights) // MOMENT_ROWS) * MOMENT_ROWS
        series = self.data.rechunk((height, self.widths))
        blocks = tuple(-(-size // MOMENT_ROWS) for size in series.chunks[0])
        moments = series.map_blocks(
            _moments, null=null, dtype=np.float64, new_axis=1, chunks=(blocks, (4,), self.widths), meta=_META[3]
        )
        std = moments.rechunk({0: -1}).map_blocks(
            _deviation, dtype=np.float64, drop_axis=[0, 1], chunks=(self.widths,), meta=_META[1]
        )
        result: Array = std.compute()
        return result

    def measure(self, history: int, horizon: int, stride: int, null: Null, std: Array, per_node: bool) -> Any:
        """Lazy: sums over nodes [num_windows, 8], or values [num_windows, columns, 6]."""
        series = self.data.rechunk((self.heights, self.widths))
        tail = {0: (0, self.length - 1), 1: (0, 0)}
        with_next = self.dask.overlap.overlap(series, depth=tail, boundary="none", allow_rechunk=False)
        first_rows = np.concatenate([[0], np.cumsum(self.heights)])
        first_rows = np.minimum(first_rows, self.rows - self.length + 1)
        # Windows that begin in each chunk; the last chunks may have none.
        windows = -(-first_rows // stride)
        counts = tuple(int(count) for count in np.diff(windows))
        deviations = self.dask.from_array(std[None], chunks=((1,), self.widths))
        spans = tuple(-(-width // SPAN) for width in self.widths)
        values = self.dask.map_blocks(
            _measure,
            with_next,
            deviations,
            history=history,
            horizon=horizon,
            stride=stride,
            null=null,
            per_node=per_node,
            first_rows=tuple(int(row) for row in windows[:-1] * stride),
            chunk_rows=tuple(int(row) for row in np.concatenate([[0], np.cumsum(self.heights)[:-1]])),
            counts=counts,
            dtype=np.float32 if per_node else np.float64,
            new_axis=2,
            chunks=(counts, self.widths, (6,)) if per_node else (counts, spans, (len(SUMS),)),
            meta=_META[3],
        )
        if per_node:
            return values
        return values.rechunk({1: -1}).map_blocks(
            _total, dtype=np.float64, drop_axis=1, chunks=(counts, (len(SUMS),)), meta=_META[2]
        )


# What map_blocks would otherwise find out by calling the functions with empty arrays.
_META = {n: np.empty((0,) * n) for n in (1, 2, 3)}


def _moments(block: Array, null: Null) -> Array:
    moments: Array = torch.ops.stprune.node_moments(*_columns(block, null)).numpy()
    return moments


def _deviation(moments: Array) -> Array:
    std: Array = deviation(torch.from_numpy(moments)).numpy()
    return std


def _measure(
    block: Array,
    std: Array,
    history: int,
    horizon: int,
    stride: int,
    null: Null,
    per_node: bool,
    first_rows: tuple[int, ...],
    chunk_rows: tuple[int, ...],
    counts: tuple[int, ...],
    block_id: tuple[int, ...],
) -> Array:
    chunk, length = block_id[0], history + horizon
    columns, exact = _columns(block, null)
    count, first = counts[chunk], first_rows[chunk]
    begin = first - chunk_rows[chunk]
    rows = columns[begin : begin + (count - 1) * stride + length] if count else columns[:0]
    inverse = invert(torch.from_numpy(std[0] if horizon else np.zeros_like(std[0])))
    # The place of the first row in the whole series decides the order of the sums, so that every cut gives the same bits.
    values, infinite = torch.ops.stprune.window_stats(rows, history, horizon, stride, first % length, exact, inverse, per_node)
    if bool(infinite):
        raise infinite_error(_OP, rows)
    result: Array = values.permute(1, 2, 0).numpy() if per_node else values.permute(1, 0, 2).numpy()
    return result


def _total(sums: Array) -> Array:
    """Sum over the spans [windows, spans, 8], in order."""
    total = sums[:, 0]
    for span in range(1, sums.shape[1]):
        total = total + sums[:, span]
    return total


def _joined(chunks: tuple[int, ...], least: int) -> tuple[int, ...]:
    """Chunks joined with those that follow until each has at least `least` rows."""
    joined: list[int] = []
    size = 0
    for rows in chunks:
        size += rows
        if size >= least:
            joined.append(size)
            size = 0
    if size:
        joined[-1:] = [joined[-1] + size] if joined else [size]
    return tuple(joined)


def _labelled(array: Any, values: dict[str, Any], starts: WindowStarts, per_node: bool) -> Any:
    """xarray Dataset of the statistics with the series' coordinates, without the windows that gaps leave out."""
    xarray = importlib.import_module("xarray")
    rows = starts.all
    if starts.kept is not None:
        values = {name: value[starts.kept] for name, value in values.items()}
    dims = ("window", *array.dims[1:]) if per_node else ("window",)
    shape = (len(rows), *array.shape[1:]) if per_node else (len(rows),)
    coords: dict[str, Any] = {"start": ("window", rows)}
    for name, coord in array.coords.items():
        if coord.dims == array.dims[:1]:
            coords[name] = ("window", coord.values[rows])
        elif per_node and array.dims[0] not in coord.dims:
            coords[name] = coord
    return xarray.Dataset({name: (dims, value.reshape(shape)) for name, value in values.items()}, coords=coords)


def _as_array(dataset: Any, variable: str | None, time_dim: str) -> Any:
    """The DataArray meant, time first."""
    try:
        xarray = importlib.import_module("xarray")
    except ImportError as error:
        raise RuntimeError(f"{_OP}: needs xarray: pip install stprune[dask]") from error
    if isinstance(dataset, xarray.Dataset):
        names = [str(name) for name in dataset.data_vars]
        if variable is None and len(names) != 1:
            raise ValueError(f"{_OP}: variable must be one of {', '.join(names)}, got None")
        if variable is not None and variable not in names:
            raise ValueError(f"{_OP}: variable must be one of {', '.join(names)}, got {variable!r}")
        dataset = dataset[names[0] if variable is None else variable]
    elif not isinstance(dataset, xarray.DataArray):
        raise TypeError(f"{_OP}: dataset must be an xarray Dataset or DataArray, got {type(dataset).__name__}")
    elif variable is not None:
        raise ValueError(f"{_OP}: variable must be None for a DataArray, got {variable!r}")
    if time_dim not in dataset.dims:
        raise ValueError(f"{_OP}: time_dim must be one of {', '.join(map(str, dataset.dims))}, got {time_dim!r}")
    if dataset.size == 0:
        raise ValueError(f"{_OP}: dataset must not be empty, got shape {dataset.shape}")
    if dataset.dtype.kind not in "fiu" or (dataset.dtype.kind in "iu" and dataset.dtype.itemsize > 4):
        raise TypeError(f"{_OP}: dataset must hold floats or integers of at most 32 bits, got {dataset.dtype}")
    return dataset.transpose(time_dim, ...)


def _times(array: Any) -> Any:
    """The coordinate of the time dimension where it says times, else None."""
    coord = array.coords.get(array.dims[0])
    return None if coord is None or coord.dtype.kind != "M" else coord.values


def _columns(block: Any, null: Null) -> tuple[torch.Tensor, float | None]:
    """A block as [time, column] float32 or float64, and the null value that the kernels look for in it."""
    return without_null(as_columns(_OP, _native(block))[0], *null)


def _native(block: Any) -> Array:
    """A block as a NumPy array in this machine's byte order."""
    values = np.asarray(block)
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def _values(node_std: Any) -> Any:
    return node_std.values if hasattr(node_std, "values") and not isinstance(node_std, torch.Tensor) else node_std


def _is_lazy(data: Any) -> bool:
    return hasattr(data, "dask") and hasattr(data, "chunks")


def _require_dask() -> Any:
    try:
        return importlib.import_module("dask.array")
    except ImportError as error:
        raise RuntimeError(f"{_OP}: needs dask: pip install stprune[dask]") from error
