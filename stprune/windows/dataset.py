"""Windows as a map-style data set, cut from the series when they are asked for."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stprune.ops import _check
from stprune.ops._series import as_series
from stprune.windows.clock import clock_features
from stprune.windows.mapped import mapped_file
from stprune.windows.starts import WindowStarts

_OP = "WindowDataset"


def split_windows(
    num_times: int, history: int, horizon: int, ratios: Sequence[float] = (6, 2, 2)
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Chronological train, validation and test row ranges that share no row, so no window crosses a split.

    Rows are cut, not windows (the BasicTS convention): each of the first two parts gets its share of the rows
    rounded down, the last part gets the rest. The 17,856 rows of PEMS08 give 10,690 / 3,548 / 3,549 windows of
    12 + 12 steps. Cutting the list of windows instead (10,700 / 3,567 / 3,566) lets windows reach into the next part.
    Rows count alike whatever their times; a part's `WindowDataset` leaves out its windows over gaps.

    Args:
        num_times: Rows of the series.
        history: Input steps of a window.
        horizon: Target steps of a window.
        ratios: Three positive numbers, in any unit; (6, 2, 2) and (0.6, 0.2, 0.2) are the same.

    Returns:
        ``((start, stop), (start, stop), (start, stop))``, to be passed to `WindowDataset`.

    Raises:
        ValueError: A length is not positive, there are not three positive finite ratios, or a part is too short for
            one window.
        TypeError: A length is not an int.

    Example:
        >>> split_windows(17856, 12, 12)
        ((0, 10713), (10713, 14284), (14284, 17856))

    Source:
        BasicTS: its PEMS08 data set holds 10690/3548/3549 windows of 12 + 12 steps.
    """
    num_times = _check.integer("split_windows", "num_times", num_times, 1)
    window = sum(_check.integer("split_windows", name, rows, 1) for name, rows in (("history", history), ("horizon", horizon)))
    if len(ratios) != 3 or not all(np.isfinite(r) and r > 0 for r in ratios):
        raise ValueError(f"split_windows: ratios must be three positive numbers, got {tuple(ratios)}")
    # Exact shares: 0.6 is meant as 6/10, not as the binary number next to it, which may lose a row.
    shares = [Fraction(r).limit_denominator(10**6) for r in ratios]
    first, second = (int(num_times * share / sum(shares)) for share in shares[:2])
    parts = ((0, first), (first, first + second), (first + second, num_times))
    for name, (start, stop) in zip(("train", "validation", "test"), parts, strict=True):
        if stop - start < window:
            raise ValueError(
                f"split_windows: num_times must leave the {name} part at least history + horizon = {window} rows, "
                f"got {stop - start} of {num_times}"
            )
    return parts


class WindowDataset(Dataset[tuple[Tensor, Tensor]]):
    """Every window of a series, cut out when it is asked for; no window is stored.

    Window i begins at row ``starts[i] = start + i * stride``; x is the ``history`` rows from there and y the
    ``horizon`` rows after them. Windows never reach beyond ``stop``, so the ranges of `split_windows` keep the parts
    apart. Where ``timestamps`` have gaps, windows with rows on both sides of one are left out, and ids count the others:
    ``num_dropped`` and `repr` say how many are left out. x and y are views of the series when it is a tensor or a
    writable array and no time features are asked for (copy before changing them in place); read-only arrays and memory
    maps give copies.

    Args:
        series: [time, node, channel] or [time, node] (one channel), tensor, array or ``np.memmap``, the unit of your
            model. Kept by reference, never modified.
        history: Input steps, at least 1.
        horizon: Target steps, at least 1.
        stride: Rows between the starts of neighbouring windows, at least 1.
        start: First row that may be used.
        stop: Row behind the last that may be used; None is the end of the series.
        target_channels: Channel or distinct channels of y; None is all. x always has all.
        steps_per_day: Appends two channels to x, computed from the row number: time of day
            ``(row + first_step) % steps_per_day / steps_per_day`` and day of week ``day % 7 / 7``, both in [0, 1).
            An embedding index is ``round(feature * steps_per_day)``; truncation loses steps to float rounding.
        first_step: Steps between a Monday 00:00 and row 0, at least 0.
        timestamps: [time] increasing times in place of ``steps_per_day``: the same two channels from the clock (Monday is
            0), right also where rows are missing. datetime64 of any unit, pandas' DatetimeIndex or a list of datetime,
            without a time zone.
        gaps: What happens to windows over a gap in ``timestamps``: "drop" leaves them out, "keep" keeps them, "raise"
            refuses them. A gap is a step of at least one and a half normal steps, the normal step the most frequent one.

    Raises:
        TypeError: ``series`` is no array of real numbers, a length or channel is no int, time features are asked of a
            series that is neither float32 nor float64, ``timestamps`` are no such times.
        ValueError: A length is below 1, rows [start, stop) lie outside the series or hold no window, a channel is out
            of range or repeated, ``timestamps`` has another length, NaT, a time not after the one before, or comes with
            ``steps_per_day``; the series has a negative stride.

    Example:
        >>> import torch
        >>> from stprune.windows import WindowDataset
        >>> windows = WindowDataset(torch.arange(40.0).reshape(20, 2), history=3, horizon=2)
        >>> x, y = windows[1]
        >>> len(windows), x.shape, y[:, :, 0].tolist()
        (16, torch.Size([3, 2, 1]), [[8.0, 9.0], [10.0, 11.0]])

    Source:
        Shapes and time features as BasicTS and LargeST use them; window ids count starts, overlap is history + horizon
        - stride rows.
    """

    def __init__(
        self,
        series: Tensor | np.ndarray[Any, Any],
        *,
        history: int = 12,
        horizon: int = 12,
        stride: int = 1,
        start: int = 0,
        stop: int | None = None,
        target_channels: int | Sequence[int] | None = None,
        steps_per_day: int | None = None,
        first_step: int = 0,
        timestamps: Any = None,
        gaps: str = "drop",
    ) -> None:
        self.series = as_series(_OP, series)
        self.history = _check.integer(_OP, "history", history, 1)
        self.horizon = _check.integer(_OP, "horizon", horizon, 1)
        self._channels = _as_channels(target_channels, self.series.shape[2])
        num_times, first_step = self.series.shape[0], _check.integer(_OP, "first_step", first_step, 0)
        self._features: Tensor | None = None
        if steps_per_day is not None or timestamps is not None:
            like = self._rows(0, 1)
            self._features = clock_features(
                _OP, num_times, steps_per_day=steps_per_day, first_step=first_step, timestamps=timestamps, dtype=like.dtype
            ).to(like.device)
        self._starts = WindowStarts(
            _OP,
            num_times,
            length=self.history + self.horizon,
            stride=stride,
            start=start,
            stop=stop,
            timestamps=timestamps,
            gaps=gaps,
        )
        self.stride, self.start, self.stop = self._starts.stride, self._starts.start, self._starts.stop
        self.num_dropped = self._starts.num_dropped

    def __len__(self) -> int:
        """Number of windows in rows [start, stop)."""
        return len(self._starts)

    def __repr__(self) -> str:
        """Sizes of the series and of its windows."""
        return (
            f"WindowDataset({len(self)} windows of {self.history} + {self.horizon} steps, {self._starts} of "
            f"{tuple(self.series.shape)})"
        )

    @property
    def starts(self) -> Tensor:
        """[num_windows] int64: the row at which each window's history begins; made anew on each access."""
        return torch.from_numpy(self._starts.all)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """x [history, node, channel] and y [horizon, node, target channel] of one window."""
        row = self._row(index)
        cut = row + self.history
        x, y = self._rows(row, cut), self._rows(cut, cut + self.horizon)[..., self._channels]
        return self._with_features(x, slice(row, cut)), y

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """The windows of a batch in the order of ``indices``, for the DataLoader's collate function to stack."""
        return [self[index] for index in indices]

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """x [B, history, node, channel] and y [B, horizon, node, target channel], gathered at once, contiguous copies.

        Args:
            indices: Window ids, int64 tensor or sequence of int, in any order, repeats allowed. Not modified.

        Returns:
            The same values as stacking ``self[i]`` for every i, in the order of ``indices``.

        Raises:
            IndexError: An id lies outside [-num_windows, num_windows).
            TypeError: An id is not an int.

        Example:
            >>> import torch
            >>> from stprune.windows import WindowDataset
            >>> x, y = WindowDataset(torch.zeros(30, 4, 1), history=6, horizon=3).batch([0, 21, 5])
            >>> x.shape, y.shape
            (torch.Size([3, 6, 4, 1]), torch.Size([3, 3, 4, 1]))
        """
        first = self._first_rows(indices)[:, None]
        past = first + np.arange(self.history)
        future = first + self.history + np.arange(self.horizon)
        x, y = self._gather(past), self._gather(future)[..., self._channels].contiguous()
        return self._with_features(x, torch.from_numpy(past)), y

    def _row(self, index: int) -> int:
        position = operator.index(index)
        size = len(self)
        if not -size <= position < size:
            raise IndexError(f"{_OP}: index must lie in [{-size}, {size}), got {position}")
        return int(self._starts.rows(position % size))

    def _first_rows(self, indices: Sequence[int] | Tensor) -> np.ndarray[Any, Any]:
        ids = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise TypeError(f"{_OP}: indices must be a flat sequence of ints, got {ids.ndim}-D {ids.dtype}")
        ids = ids.astype(np.int64)
        outside = (ids < -len(self)) | (ids >= len(self))
        if outside.any():
            self._row(int(ids[outside][0]))
        rows: np.ndarray[Any, Any] = self._starts.rows(ids % len(self))
        return rows

    def _rows(self, first: int, last: int) -> Tensor:
        block = self.series[first:last]
        if isinstance(block, Tensor):
            return block
        # torch warns about read-only memory, and writing into a mapped file by accident must not be possible.
        return torch.from_numpy(np.asarray(block) if _is_private(block) else np.array(block))

    def _gather(self, rows: np.ndarray[Any, Any]) -> Tensor:
        if isinstance(self.series, Tensor):
            flat = torch.from_numpy(rows.reshape(-1)).to(self.series.device)
            return self.series.index_select(0, flat).reshape(*rows.shape, *self.series.shape[1:])
        return torch.from_numpy(np.asarray(self.series[rows]))

    def _with_features(self, x: Tensor, rows: slice | Tensor) -> Tensor:
        """x [..., node, channel] with the time features of its rows as further channels."""
        if self._features is None:
            return x
        features = self._features[rows][..., None, :]
        return torch.cat([x, features.expand(*x.shape[:-1], features.shape[-1])], dim=-1)

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and workers; a memory map travels as its file's name, not as its contents."""
        state = dict(self.__dict__)
        source = mapped_file(self.series)
        if source is not None:
            state["series"] = source
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a copy; a memory map is opened again read-only."""
        self.__dict__.update(state)
        if isinstance(self.series, dict):
            self.series = as_series(_OP, np.memmap(**self.series, mode="r"))


def _as_channels(target_channels: Any, num_channels: int) -> Any:
    """An index of the last dimension: a slice (a view) where the channels are neighbours, otherwise a list (a copy)."""
    if target_channels is None:
        return slice(None)
    wanted = [target_channels] if hasattr(target_channels, "__index__") else list(target_channels)
    if not wanted or not all(hasattr(c, "__index__") and not isinstance(c, bool) for c in wanted):
        raise TypeError(f"{_OP}: target_channels must be an int or ints, got {target_channels!r}")
    channels = [operator.index(c) for c in wanted]
    if not all(0 <= c < num_channels for c in channels) or len(set(channels)) < len(channels):
        raise ValueError(f"{_OP}: target_channels must be distinct and lie in [0, {num_channels}), got {channels}")
    if channels == list(range(channels[0], channels[0] + len(channels))):
        return slice(channels[0], channels[0] + len(channels))
    return channels


def _is_private(array: np.ndarray[Any, Any]) -> bool:
    return bool(array.flags.writeable) and not isinstance(array, np.memmap)
