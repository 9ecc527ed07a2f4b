"""The first row of every window, and the windows that gaps in time leave out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from stprune.ops import _check
from stprune.windows.clock import checked_timestamps

GAPS = ("drop", "keep", "raise")

Array = np.ndarray[Any, Any]


def rows_of(ids: Any, *, start: int, stride: int, starts: Any = None) -> Any:
    """First rows of windows: from the list `starts` where there is one, evenly spaced otherwise.

    Args:
        ids: [K] int64 window ids, array or tensor.
        start, stride: row of window 0, and rows between the starts of neighbouring windows.
        starts: [num_windows] int64 first rows, array or tensor as `ids`, or None.
    """
    return start + stride * ids if starts is None else starts[ids]


class WindowStarts:
    """First rows of the windows in rows [start, stop) of a series.

    Without timestamps, or where they have no gap, window i begins at row start + stride * i. A gap is a step of at least one
    and a half normal steps; the normal step is the most frequent one of the whole series (the smallest of several).
    Windows with rows on both sides of a gap are left out (gaps="drop"), and the others are numbered 0, 1, ... in order.

    Args:
        op: name for error messages.
        num_times: rows of the series.
        length: rows of a window.
        stride, start, stop: as in `WindowDataset`.
        timestamps: [time] as in `WindowDataset`, or None.
        gaps: "drop", "keep" (the windows over gaps too), or "raise" (refuse them).

    Attributes:
        num_dropped: windows left out.
        kept: [num_windows] int64, place of each window among the evenly spaced ones; None where none is left out.

    Raises:
        TypeError, ValueError: an argument breaks its rule, no window is left, or one lies over a gap and `gaps` is "raise".
    """

    def __init__(
        self,
        op: str,
        num_times: int,
        *,
        length: int,
        stride: Any = 1,
        start: Any = 0,
        stop: Any = None,
        timestamps: Any = None,
        gaps: Any = "drop",
    ) -> None:
        self.stride = _check.integer(op, "stride", stride, 1)
        self.start = _check.integer(op, "start", start, 0, num_times)
        self.stop = num_times if stop is None else _check.integer(op, "stop", stop, 0, num_times)
        if self.stop - self.start < length:
            raise ValueError(
                f"{op}: rows [start, stop) must hold at least history + horizon = {length} rows, got {self.stop - self.start}"
            )
        self._count = (self.stop - self.start - length) // self.stride + 1
        self.kept: Array | None = None
        self._rows: Array | None = None
        self._placed: torch.Tensor | None = None  # `_rows` on the device of the last `rows_on`
        self.num_dropped = 0
        _check.choice(op, "gaps", gaps, GAPS)
        if timestamps is not None:
            times = checked_timestamps(op, timestamps, num_times)
            if gaps != "keep":
                self._leave_out(op, times, length, gaps)
        elif gaps == "raise":
            raise ValueError(f'{op}: timestamps must be given for gaps="raise", got None')

    def _leave_out(self, op: str, times: Array, length: int, gaps: str) -> None:
        # Row r is in `last` when a gap follows it; a window of rows [s, s + length) lies over it if s <= r < s + length - 1.
        last = rows_before_gaps(times)
        if not len(last):
            return
        rows = self.start + self.stride * np.arange(self._count)
        whole = np.searchsorted(last, rows) == np.searchsorted(last, rows + (length - 1))
        self.num_dropped = self._count - int(whole.sum())
        if not self.num_dropped:
            return
        if gaps == "raise":
            row = int(last[np.searchsorted(last, rows[~whole][0])])
            raise ValueError(
                f"{op}: timestamps must have no gap inside a window, got {times[row + 1]} in row {row + 1} after {times[row]}; "
                f'gaps="drop" leaves {self.num_dropped} windows out'
            )
        if self.num_dropped == self._count:
            raise ValueError(
                f"{op}: timestamps must leave a window of {length} rows without a gap, got none of {self._count}; "
                'gaps="keep" keeps the windows over gaps'
            )
        self.kept = np.flatnonzero(whole)
        self._rows = rows[whole]
        self._count -= self.num_dropped

    def __len__(self) -> int:
        return self._count

    def __str__(self) -> str:
        """Stride and rows, and how many windows are left out."""
        dropped = f", {self.num_dropped} left out over gaps" if self.num_dropped else ""
        return f"stride {self.stride}{dropped}, rows [{self.start}, {self.stop})"

    @property
    def all(self) -> Array:
        """[num_windows] int64: the first row of every window, in a new array."""
        return self.rows(np.arange(self._count))

    def rows(self, ids: Any) -> Any:
        """First rows of windows, [K] int64 of [K] int64 ids or one of one; ids must be in range."""
        return rows_of(ids, start=self.start, stride=self.stride, starts=self._rows)

    def rows_on(self, ids: torch.Tensor) -> torch.Tensor:
        """`rows` of ids [K] int64 on any device, where they stay: at most one kernel, as a batch waits for it."""
        if self._rows is None:
            return ids if (self.start, self.stride) == (0, 1) else torch.add(torch.tensor(self.start), ids, alpha=self.stride)
        if self._placed is None or self._placed.device != ids.device:
            self._placed = torch.from_numpy(self._rows).to(ids.device)
        return self._placed.index_select(0, ids)


def rows_before_gaps(times: Array) -> Array:
    """The rows that a gap follows, of checked timestamps."""
    steps = np.diff(times).astype(np.int64)
    if not len(steps) or (steps == steps[0]).all():
        return np.empty(0, np.int64)
    values, counts = np.unique(steps, return_counts=True)
    normal = int(values[counts.argmax()])
    return np.flatnonzero(steps >= normal + normal / 2)
