"""What every function of the package accepts as a series, checked in one place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_series(op: str, series: Any) -> Any:
    """The series itself, tensor or array, as a [time, node, channel] view.

    Raises:
        TypeError: it is neither a dense tensor nor a NumPy array of real numbers in native byte order.
        ValueError: it has another number of dimensions, is empty, or is an array that torch cannot describe.
    """
    if isinstance(series, Tensor):
        if series.layout != torch.strided:
            raise TypeError(f"{op}: series must be a dense tensor, got {series.layout}")
        real = not series.is_complex() and series.dtype != torch.bool
    elif isinstance(series, np.ndarray):
        real = series.dtype.kind in "fiu" and series.dtype.isnative and series.dtype.itemsize <= 8
    else:
        advice = " (pass its .values)" if hasattr(series, "values") else ""
        raise TypeError(f"{op}: series must be a torch tensor or a numpy array, got {type(series).__name__}{advice}")
    if not real:
        raise TypeError(f"{op}: series must hold real numbers in native byte order, got {series.dtype}")
    shape = tuple(series.shape)
    if len(shape) not in (2, 3):
        advice = ""
        if len(shape) == 1:
            advice = "; for a single node pass series[:, None]"
        elif len(shape) == 4:
            advice = f"; for a grid pass series.reshape({shape[0]}, {shape[1] * shape[2]}, {shape[3]})"
        raise ValueError(f"{op}: series must be [time, node] or [time, node, channel], got shape {shape}{advice}")
    if 0 in shape:
        raise ValueError(f"{op}: series must not be empty, got shape {shape}")
    if isinstance(series, np.ndarray):
        strides, size = series.strides, series.itemsize
        if not series.flags.aligned or any(step < 0 or step % size for step in strides):
            raise ValueError(
                f"{op}: series must be aligned, with strides of whole elements >= 0, got strides {strides}; "
                "pass numpy.ascontiguousarray(series)"
            )
    return series if len(shape) == 3 else series[:, :, None]


def as_tensor(op: str, series: Any) -> Tensor:
    """The series as a [time, node, channel] tensor on the same memory, read-only or not; to be read only."""
    checked = as_series(op, series)
    return checked if isinstance(checked, Tensor) else torch.from_numpy(np.asarray(_Writable(checked)))


class _Writable:
    """An array's memory as writable, so that torch takes read-only arrays without a copy or a warning; nothing writes to it."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
