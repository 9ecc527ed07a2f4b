"""Time of day and day of week of the rows of a series, as input features."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stprune.ops import _check

DAY = np.timedelta64(1, "D")

Array = np.ndarray[Any, Any]


def time_features(
    num_times: int,
    *,
    steps_per_day: int | None = None,
    first_step: int = 0,
    timestamps: Any = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Time of day and day of week of every row, both in [0, 1): the two channels that `WindowDataset` appends to x.

    An embedding index is ``round(feature * steps_per_day)``; truncation loses steps to float rounding.

    Args:
        num_times: rows of the series.
        steps_per_day: rows in a day: time of day is ``(row + first_step) % steps_per_day / steps_per_day``, day of week
            ``day % 7 / 7``.
        first_step: steps between a Monday 00:00 and row 0, at least 0.
        timestamps: [time] increasing times in place of ``steps_per_day``: the same from the clock (Monday is 0), right also
            where rows are missing. datetime64 of any unit, pandas' DatetimeIndex or a list of datetime, without a time zone.
        dtype: float32 or float64; each feature is computed in float64 and rounded once.

    Returns:
        [time, 2].

    Raises:
        TypeError: a length is no int, ``timestamps`` are no such times, or ``dtype`` is another.
        ValueError: not exactly one of ``steps_per_day`` and ``timestamps`` is given, a length is too small, or ``timestamps``
            has another length, NaT, or a time that does not come after the one before.

    Example:
        >>> from stprune.windows.clock import time_features
        >>> time_features(3, steps_per_day=4, first_step=3).tolist()
        [[0.75, 0.0], [0.0, 0.1428571492433548], [0.25, 0.1428571492433548]]

    Source:
        The features of BasicTS and LargeST.
    """
    num_times = _check.integer("time_features", "num_times", num_times, 1)
    return clock_features(
        "time_features", num_times, steps_per_day=steps_per_day, first_step=first_step, timestamps=timestamps, dtype=dtype
    )


def clock_features(
    op: str, num_times: int, *, steps_per_day: Any, first_step: Any, timestamps: Any, dtype: torch.dtype
) -> Tensor:
    """`time_features` for a function of another name."""
    first_step = _check.integer(op, "first_step", first_step, 0)
    if dtype not in (torch.float32, torch.float64):
        # In 16 bits the last minutes of a day round to 1.0, one step beyond a time-of-day embedding.
        raise TypeError(f"{op}: time features must be float32 or float64, got {dtype}")
    if (steps_per_day is None) == (timestamps is None):
        got = "neither" if timestamps is None else "both"
        raise ValueError(f"{op}: exactly one of steps_per_day and timestamps must be given, got {got}")
    if timestamps is None:
        steps_per_day = _check.integer(op, "steps_per_day", steps_per_day, 1)
        day, step = np.divmod(np.arange(num_times) + first_step, steps_per_day)
        time_of_day = step / steps_per_day
    else:
        times = checked_timestamps(op, timestamps, num_times)
        days = times.astype("datetime64[D]")
        # Day 0 of datetime64, 1970-01-01, was a Thursday: 3 days after a Monday.
        day, time_of_day = days.astype(np.int64) + 3, (times - days) / DAY
    return torch.from_numpy(np.stack([time_of_day, day % 7 / 7], axis=1)).to(dtype)


def checked_timestamps(op: str, timestamps: Any, num_times: int) -> Array:
    """[num_times] datetime64, increasing and without NaT, or the error that names the argument and the row."""
    times = np.asarray(timestamps)
    if times.dtype.kind == "O" and all(map(_is_plain_time, times.flat)):
        times = times.astype("datetime64[us]")
    if times.dtype.kind != "M":
        advice = ""
        if times.dtype.kind == "O":
            advice = (
                "; objects must be datetime, not NaT, without a time zone (timestamps.tz_convert(None) of pandas gives UTC)"
            )
        elif times.dtype.kind in "US":
            advice = "; text becomes times by numpy.array(timestamps, 'datetime64[s]') or pandas.to_datetime(timestamps)"
        raise TypeError(f"{op}: timestamps must be a datetime64 array, got {times.dtype}{advice}")
    if times.shape != (num_times,) or bool(np.isnat(times).any()):
        raise ValueError(
            f"{op}: timestamps must be one time for each of the {num_times} rows, got shape {times.shape}, "
            f"{int(np.isnat(times).sum())} of them NaT"
        )
    stopped = np.flatnonzero(times[1:] <= times[:-1])
    if len(stopped):
        row = int(stopped[0]) + 1
        raise ValueError(f"{op}: timestamps must increase with the rows, got {times[row]} in row {row} after {times[row - 1]}")
    return times


def _is_plain_time(time: Any) -> bool:
    # pandas' NaT is a datetime that does not equal itself.
    return isinstance(time, datetime.date) and getattr(time, "tzinfo", None) is None and time == time
