"""Arrays and memory-mapped files as tensors that share their memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stprune.windows._check import as_series

RELEASE_BYTES = 1 << 26
"""Bytes read from a map between two releases of its pages. A release takes about a millisecond for so many."""


class _Borrowed:
    """An array's memory as writable, so that torch takes read-only arrays without a copy or a warning; nothing writes to it."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def as_tensor(function: str, array: Any) -> Tensor:
    """A [time, node, channel] tensor on the array's own memory, read-only or not; to be read only.

    Args:
        function: name for error messages.
        array: [time, node, channel] or [time, node] NumPy array of real numbers; kept alive by the tensor.

    Raises:
        TypeError, ValueError: it is no such array, or torch cannot describe its strides.
    """
    checked = as_series(function, array)
    if isinstance(checked, Tensor):
        return checked
    strides, size = checked.strides, checked.itemsize
    if not checked.flags.aligned or any(step < 0 or step % size for step in strides):
        raise ValueError(f"{function}: series must be aligned, with strides of whole elements >= 0, got strides {strides}")
    return torch.from_numpy(np.asarray(_Borrowed(checked)))


class MappedPages:
    """Gives back the pages of a memory-mapped file every now and then.

    They stay in the system's cache but no longer count as the process's, which would otherwise grow to the file's size.

    Args:
        series: whatever the series is; only a memory map that loses nothing by it is ever touched.
    """

    def __init__(self, series: Any) -> None:
        self._map: mmap.mmap | None = None
        self._touched = 0
        while isinstance(series, np.ndarray):
            if isinstance(series, np.memmap) and isinstance(series.base, mmap.mmap):
                # Pages of a copy-on-write map are the only place of what was written to them.
                if series.mode in ("r", "r+", "w+") and hasattr(mmap, "MADV_DONTNEED"):
                    self._map = series.base
                break
            series = series.base

    def __bool__(self) -> bool:
        """Whether there is a map."""
        return self._map is not None

    def portions(self, count: int, item_bytes: int, *, whole: bool = False) -> Iterator[slice]:
        """Cut `count` items, each of which reads `item_bytes`, so that pages can be given back between them.

        Args:
            count: at least 1.
            item_bytes: bytes of the map that one item reads.
            whole: all of them at once.

        Yields:
            Slices of the items; what a slice stands for must be read before the next is asked for.
        """
        if whole or self._map is None:
            yield slice(None)
            self._touch(count * item_bytes)
            return
        step = max(1, RELEASE_BYTES // item_bytes)
        for first in range(0, count, step):
            last = min(first + step, count)
            yield slice(first, last)
            self._touch((last - first) * item_bytes)

    def _touch(self, num_bytes: int) -> None:
        self._touched += num_bytes
        if self._map is not None and self._touched >= RELEASE_BYTES:
            self._touched = 0
            self._map.madvise(mmap.MADV_DONTNEED)
