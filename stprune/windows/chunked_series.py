"""ChunkedSeries: a stored series read by whole chunks."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stprune.ops import _check

_OP = "ChunkedSeries"


class ChunkedSeries:
    """Rows of a stored series through a cache of whole chunks: at most `memory_chunks` are held.

    A chunk is the rows that the store keeps together. Chunks of several sizes, as Dask may have them, are read as they are.

    Args:
        array: [time, node] or [time, node, channel], anything with `shape` and `dtype` whose slices along the first axis are
            arrays: a Zarr array, an HDF5 data set, an xarray DataArray (``xarray.open_zarr(path)["v"]``), a Dask array, a
            memory map, a NumPy array, a tensor in host memory. Never modified.
        chunk: rows of a chunk; None takes the array's own.
        memory_chunks: chunks held at a time, at least 1; the least recently used one goes first. Chunks of several sizes may
            together have as many rows as so many of the largest.

    Attributes:
        chunk: rows of a chunk, of the largest where sizes differ.
        reads: chunks read from `array` so far.

    Raises:
        TypeError: `array` is no such array, or an integer argument is none.
        ValueError: `array` has no chunks of its own and `chunk` is None, or a number is out of range.

    Example:
        >>> import numpy as np
        >>> from stprune.windows import ChunkedSeries
        >>> series = ChunkedSeries(np.arange(10.0)[:, None], chunk=4, memory_chunks=2)
        >>> series[2:6].flatten().tolist(), series[3:4].shape, series.reads
        ([2.0, 3.0, 4.0, 5.0], (1, 1), 2)

    Source:
        Our definition.
    """

    def __init__(self, array: Any, *, memory_chunks: int, chunk: int | None = None) -> None:
        if isinstance(array, Tensor):
            if array.device.type != "cpu" or array.dtype == torch.bfloat16:
                got = f"{array.dtype} on {array.device}"
                raise TypeError(f"{_OP}: array must lie in host memory, in a dtype that NumPy has, got a tensor of {got}")
            array = array.detach().numpy()
        # An xarray Dataset or a group of an HDF5 file has names for keys, and no dtype.
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise TypeError(f"{_OP}: array must be a single array with shape and dtype, got {type(array).__name__}")
        self.array = array
        self.shape = tuple(_check.integer(_OP, "shape of array", size, 0) for size in array.shape)
        if not self.shape:
            raise ValueError(f"{_OP}: array must be [time, node] or [time, node, channel], got shape ()")
        sizes = _own_chunks(array) if chunk is None else _check.integer(_OP, "chunk", chunk, 1)
        # First row of each chunk, and the row behind the last one.
        self._edges: list[int]
        if isinstance(sizes, int):
            self.chunk = sizes
            self._edges = [*range(0, len(self), sizes), len(self)]
        else:
            self.chunk = max(sizes, default=1)
            self._edges = [0, *itertools.accumulate(size for size in sizes if size)]
        self.memory_chunks = _check.integer(_OP, "memory_chunks", memory_chunks, 1)
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        self.reads = 0
        self._cache: OrderedDict[int, np.ndarray[Any, Any]] = OrderedDict()

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"ChunkedSeries({self.shape}, chunk={self.chunk}, memory_chunks={self.memory_chunks}, reads={self.reads})"

    def __getitem__(self, rows: slice) -> np.ndarray[Any, Any]:
        """A copy of rows [begin, end); only slices with step 1.

        Raises:
            TypeError: `rows` is no slice.
            ValueError: the step is not 1.
        """
        if not isinstance(rows, slice):
            raise TypeError(f"ChunkedSeries: rows must be a slice, got {type(rows).__name__}")
        begin, end, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"ChunkedSeries: rows must have step 1, got {step}")
        out = np.empty((max(end - begin, 0), *self.shape[1:]), dtype=self.dtype)
        self.read_into(begin, out)
        return out

    def read_into(self, begin: int, out: np.ndarray[Any, Any]) -> None:
        """Copy the rows from `begin` on into `out` [rows, ...], as many as it has."""
        row, end = begin, begin + len(out)
        number = bisect_right(self._edges, begin) - 1
        while row < end:
            first, last = self._edges[number], min(end, self._edges[number + 1])
            out[row - begin : last - begin] = self._block(number)[row - first : last - first]
            row, number = last, number + 1

    def _block(self, number: int) -> np.ndarray[Any, Any]:
        block = self._cache.get(number)
        if block is not None:
            self._cache.move_to_end(number)
            return block
        first, last = self._edges[number], self._edges[number + 1]
        # Room first: the new chunk and the old ones together must not exceed the bound.
        room = self.memory_chunks * self.chunk - (last - first)
        while sum(map(len, self._cache.values())) > room:
            self._cache.popitem(last=False)
        block = np.asarray(self.array[first:last])
        self.reads += 1
        self._cache[number] = block
        return block

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and other processes: without what is held and counted."""
        return {**self.__dict__, "_cache": OrderedDict(), "reads": 0}


def _own_chunks(array: Any) -> int | list[int]:
    """Rows of the array's own chunks: one number, or one for each chunk."""
    own = getattr(array, "chunks", None)
    if own:
        sizes = own[0]
    else:
        # xarray says how the file is cut also where it was opened without Dask.
        preferred = getattr(array, "encoding", {}).get("preferred_chunks", {})
        sizes = preferred.get(array.dims[0]) if preferred else None
    if sizes is None:
        raise ValueError(f"{_OP}: chunk must be given for an array without chunks, got None")
    if not isinstance(sizes, tuple):
        return _check.integer(_OP, "chunks[0] of array", sizes, 1)
    return [_check.integer(_OP, "chunks[0] of array", rows, 0) for rows in sizes]
