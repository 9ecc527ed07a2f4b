"""What a series and a row range must be; shared by the data set of windows and the statistics over them."""

from __future__ import annotations

import mmap
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_length(function: str, name: str, value: Any, *, least: int = 1) -> int:
    """A Python int of at least ``least``, or the error that names the argument."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{function}: {name} must be an int, got {type(value).__name__}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{function}: {name} must be at least {least}, got {number}")
    return number


def as_range(function: str, num_times: int, start: Any, stop: Any, window: int) -> tuple[int, int]:
    """Rows [start, stop) of the series, checked to hold at least one window."""
    last = num_times if stop is None else stop
    for name, value in (("start", start), ("stop", last)):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{function}: {name} must be an int, got {type(value).__name__}")
        if not 0 <= value <= num_times:
            raise ValueError(f"{function}: {name} must lie in [0, {num_times}], got {value}")
    first, last = operator.index(start), operator.index(last)
    if last - first < window:
        raise ValueError(
            f"{function}: rows [start, stop) must hold at least history + horizon = {window} rows, got {last - first}"
        )
    return first, last


def as_series(function: str, series: Any) -> Tensor | np.ndarray[Any, Any]:
    """The series itself as [time, node, channel], a view; refuses what is not an array of real numbers."""
    if not isinstance(series, (Tensor, np.ndarray)):
        raise TypeError(
            f"{function}: series must be a torch tensor or a numpy array, got {type(series).__name__}"
            + (" (pass its .values)" if hasattr(series, "values") else "")
        )
    if isinstance(series, Tensor):
        real = not series.is_complex() and series.dtype != torch.bool and series.layout == torch.strided
    else:
        real = series.dtype.kind in "fiu" and series.dtype.isnative and series.dtype.itemsize <= 8
    if not real:
        raise TypeError(f"{function}: series must hold real numbers in native byte order, got {series.dtype}")
    if series.ndim not in (2, 3):
        raise ValueError(f"{function}: series must be [time, node] or [time, node, channel], got {tuple(series.shape)}")
    if 0 in series.shape:
        raise ValueError(f"{function}: series must not be empty, got shape {tuple(series.shape)}")
    return series if series.ndim == 3 else series[:, :, None]


def mapped_file(series: Any) -> dict[str, Any] | None:
    """How to open the memory map behind a series again, or None when it is not a whole read-only map of a file."""
    # [:, :, None] makes a view whose base is the map; only a map made by np.memmap itself has the right offset.
    candidates = (series, getattr(series, "base", None))
    for array in candidates:
        if (
            isinstance(array, np.memmap)
            and isinstance(array.base, mmap.mmap)
            and array.filename is not None
            and array.mode in ("r", "r+", "w+")
            and array.size == series.size
            and array.__array_interface__["data"] == series.__array_interface__["data"]
        ):
            order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
            return {
                "filename": array.filename,
                "dtype": array.dtype,
                "offset": array.offset,
                "shape": array.shape,
                "order": order,
            }
    return None
