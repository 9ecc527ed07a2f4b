"""Where a series lies, and how the windows of a batch are read from there: memory, a mapped file, a store of chunks."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stprune.ops._series import as_tensor
from stprune.ops._window_recipe import WindowRecipe
from stprune.windows.mapped import MappedPages, mapped_file


class InMemory:
    """A tensor or an array.

    Attributes:
        series: [time, node, channel] tensor on the series' own memory.
        ahead: batches that are best made ahead on the CPU.
        chunk, memory_chunks: of a store of chunks, else None.
    """

    ahead = 0
    chunk: int | None = None
    memory_chunks: int | None = None

    def __init__(self, op: str, series: Any) -> None:
        self.op = op
        self.series = as_tensor(op, series)

    def fill_in(
        self, recipe: WindowRecipe, start: Tensor, length: int, node: Tensor | None, x: Tensor, y: Tensor, *, parallel: bool
    ) -> None:
        """Write the windows of `length` rows from `start` [B] on into x and y."""
        recipe.fill_in(start, node, x, y, parallel=parallel)


class InMappedFile(InMemory):
    """A memory map, or a part of one: its pages are given back, and copies of a whole map open its file again."""

    ahead = 2

    def __init__(self, op: str, series: np.ndarray[Any, Any]) -> None:
        super().__init__(op, series)
        self._file = mapped_file(series)
        self._pages = MappedPages(series)

    def fill_in(
        self, recipe: WindowRecipe, start: Tensor, length: int, node: Tensor | None, x: Tensor, y: Tensor, *, parallel: bool
    ) -> None:
        """As above, by parts of a batch, so that pages can be given back between them."""
        window_bytes = length * self.series[0].numel() * self.series.element_size()
        # A layout that does not begin with the batch cannot be filled by parts.
        for part in self._pages.portions(len(start), window_bytes, whole=recipe.layout[0] != "B"):
            recipe.fill_in(start[part], None if node is None else node[part], x[part], y[part], parallel=parallel)

    def __reduce__(self) -> tuple[Any, ...]:
        """State for copies and other processes: the file's name, or the values of a part of a map."""
        return (InMemory, (self.op, self.series)) if self._file is None else (_opened, (self.op, self._file))


def _opened(op: str, file: dict[str, Any]) -> InMappedFile:
    return InMappedFile(op, np.memmap(**file, mode="r"))


class InChunks:
    """A `ChunkedSeries`: the windows of a batch are copied into a small series of their own.

    Attributes:
        series: a tensor of the series' shape and dtype that takes no memory, for a WindowRecipe to be checked against.
    """

    ahead = 2

    def __init__(self, op: str, store: Any) -> None:
        self.op, self._store = op, store
        self.chunk, self.memory_chunks = store.chunk, store.memory_chunks
        self.series = as_tensor(op, np.broadcast_to(np.zeros(1, dtype=store.dtype), store.shape))
        self._buffer = np.empty(0, dtype=store.dtype)
        # Two iterators of a loader read in two threads.
        self._lock = threading.Lock()

    def fill_in(
        self, recipe: WindowRecipe, start: Tensor, length: int, node: Tensor | None, x: Tensor, y: Tensor, *, parallel: bool
    ) -> None:
        """Read the windows of `length` rows from `start` [B] on, and write them into x and y."""
        with self._lock:
            shape = (len(start) * length, *self._store.shape[1:])
            size = int(np.prod(shape))
            if self._buffer.size < size:
                self._buffer = np.empty(size, dtype=self._store.dtype)
            rows = self._buffer[:size].reshape(shape)
            for place, first in enumerate(start.tolist()):
                self._store.read_into(first, rows[place * length : (place + 1) * length])
            features = recipe.time_features
            if features is not None:
                features = features[(start[:, None] + torch.arange(length)).view(-1)]
            small = dataclasses.replace(recipe, series=as_tensor(self.op, rows), time_features=features)
            small.fill_in(length * torch.arange(len(start)), node, x, y, parallel=parallel)

    def __reduce__(self) -> tuple[Any, ...]:
        """State for copies and other processes: without what is held and counted."""
        return InChunks, (self.op, self._store)


def source_of(op: str, series: Any) -> InMemory | InChunks:
    """How a series is read: decided once, here."""
    if hasattr(series, "read_into"):
        return InChunks(op, series)
    return InMappedFile(op, series) if isinstance(series, np.ndarray) and MappedPages(series) else InMemory(op, series)
