"""Memory-mapped files: their names, for copies, and their pages, which are given back."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

RELEASE_BYTES = 1 << 26
"""Bytes read from a map between two releases of its pages. A release takes about a millisecond for so many."""


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
