"""ChunkedSeries: a stored series read by whole chunks, and its windows laid side by side for the kernels."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stprune.ops import _check
from stprune.ops._window_recipe import WindowRecipe


class ChunkedSeries:
    """Rows of a stored series through a cache of whole chunks: at most `memory_chunks` are held.

    Args:
        array: anything with `shape` and `dtype` whose slices along the first axis are arrays: a Zarr array, an HDF5 data
            set, a memory map, an xarray DataArray. Never modified.
        chunk: rows of a chunk; None takes the array's own (`array.chunks[0]`).
        memory_chunks: chunks held at a time, at least 1; the least recently used one goes first.

    Attributes:
        reads: chunks read from `array` so far.

    Raises:
        TypeError: an integer argument is none.
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
        own = getattr(array, "chunks", None)
        if chunk is None and not own:
            raise ValueError("ChunkedSeries: chunk must be given for an array without chunks, got None")
        self.array = array
        self.chunk = _check.integer("ChunkedSeries", "chunk", own[0] if chunk is None and own else chunk, 1)
        self.memory_chunks = _check.integer("ChunkedSeries", "memory_chunks", memory_chunks, 1)
        self.shape: tuple[int, ...] = tuple(array.shape)
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
        end = begin + len(out)
        for number in range(begin // self.chunk, -(-end // self.chunk)) if len(out) else ():
            first = number * self.chunk
            low, high = max(begin, first), min(end, first + self.chunk)
            out[low - begin : high - begin] = self._block(number)[low - first : high - first]

    def _block(self, number: int) -> np.ndarray[Any, Any]:
        block = self._cache.get(number)
        if block is not None:
            self._cache.move_to_end(number)
            return block
        # Room first: the new chunk and the old ones together must not exceed the bound.
        while len(self._cache) >= self.memory_chunks:
            self._cache.popitem(last=False)
        block = np.asarray(self.array[number * self.chunk : (number + 1) * self.chunk])
        self.reads += 1
        self._cache[number] = block
        return block


class StoredWindows:
    """The windows of a batch, copied out of a ChunkedSeries into a small series of their own.

    Args:
        series: [time, node, channel] or [time, node].
    """

    def __init__(self, series: ChunkedSeries) -> None:
        self.series = series
        self._buffer = np.empty(0, dtype=series.dtype)
        # Two iterators of a loader read in two threads.
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """State for copies and other processes: without what is held and counted."""
        series = ChunkedSeries(self.series.array, memory_chunks=self.series.memory_chunks, chunk=self.series.chunk)
        return StoredWindows, (series,)

    def placeholder(self) -> Tensor:
        """A tensor of the series' shape and dtype that takes no memory: what a WindowRecipe is checked against."""
        return torch.from_numpy(np.zeros(1, dtype=self.series.dtype)).view(()).expand(self.series.shape)

    @contextlib.contextmanager
    def staged(self, recipe: WindowRecipe, start: Tensor, length: int) -> Iterator[tuple[WindowRecipe, Tensor]]:
        """Read windows of `length` rows from `start` [B] on.

        Yields:
            The recipe over a series [B * length, node, channel] that holds nothing else, and their first rows there; both
            good until the context ends.
        """
        with self._lock:
            shape = (len(start) * length, *self.series.shape[1:])
            size = int(np.prod(shape))
            if self._buffer.size < size:
                self._buffer = np.empty(size, dtype=self.series.dtype)
            rows = self._buffer[:size].reshape(shape)
            for place, first in enumerate(start.tolist()):
                self.series.read_into(first, rows[place * length : (place + 1) * length])
            block = torch.from_numpy(rows)
            features = recipe.time_features
            if features is not None:
                features = features[(start[:, None] + torch.arange(length)).view(-1)]
            small = dataclasses.replace(
                recipe, series=block if block.dim() == 3 else block.unsqueeze(2), time_features=features
            )
            yield small, length * torch.arange(len(start))
