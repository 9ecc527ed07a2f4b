"""WindowLoader: batches of windows cut straight from the series."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stprune.ops import _check
from stprune.ops._window_recipe import as_series, make_recipe
from stprune.prefetch import Memory, in_background
from stprune.sampler import PruningSampler
from stprune.windows._check import as_range, mapped_file
from stprune.windows.chunk_order import chunk_order
from stprune.windows.chunked_series import ChunkedSeries, StoredWindows
from stprune.windows.clock import time_features as features_of_clock
from stprune.windows.mapped import MappedPages, as_tensor

_OP = "WindowLoader"

NodeDraw = Callable[[Tensor], Tensor]


class WindowLoader:
    """Batches of windows, in a sampler's order, cut from the series in one pass: no window is stored, no process started.

    Takes the place of ``DataLoader(IndexedDataset(WindowDataset(series, ...)), batch_size, sampler=sampler)``: window i begins
    at row ``start + stride * i``, and the same sampler gives the same batches, bit for bit. Iterating yields ``(index, x, y)``
    or, where the sampler draws nodes (``node_ratio`` < 1) or pairs, ``(index, node, x, y)``, on `device`.

    Where the series lies says how: a series on the GPU is gathered there; one in host memory is gathered on the host, for a
    GPU by a thread `prefetch` batches ahead and copied from pinned memory beside the computation; of a memory-mapped file only
    the rows of the windows are read, and no more than about 64 MiB of it stay in the process. Batches are the caller's to keep;
    on the CPU their memory is used again once nothing refers to it. `iter` has no side effect: two iterators over one epoch
    give the same, in any interleaving. An iterator that is dropped half-way ends its thread.

    Args:
        series: [time, node, channel] or [time, node], float32, float64, float16, bfloat16 or int16; tensor, array,
            ``np.memmap``, or a `ChunkedSeries` over an HDF5 data set, a Zarr array or anything else that is sliced. Kept by
            reference, never modified.
        sampler: a `PruningSampler` over the windows, any sized iterable of window ids, or None: all windows in order, as for
            validation and test.
        batch_size: windows in a batch, at least 1; the last batch may hold fewer.
        history, horizon: rows of x and of y, at least 1.
        stride: rows between the starts of neighbouring windows, at least 1.
        start, stop: rows [start, stop) that may be used (see `split_windows`); stop None is the end of the series.
        target_channels: channel or distinct channels of y; None is all.
        steps_per_day, first_step, timestamps: append time of day and day of week to x, as `WindowDataset` does.
        time_features: [time, feature] floating in their place: a row's own channels, appended to x unchanged.
        layout, mean, std, normalize_target, scale, offset, missing, fill, dtype: as in `gather_windows`.
        device: of the batches; None is that of the series.
        prefetch: batches made ahead, at least 0; 0 makes each when it is asked for. Memory holds the batch in use and so many
            more. None is 0 from memory to the CPU, where a thread of its own costs what it saves, and 2 where a file is read
            or a GPU waits. Means nothing for a series on the GPU, whose batches are asynchronous anyway.
        drop_last: leave out a last batch that is not full.
        order: "sampler", or "chunk": the epoch's ids shuffled by `chunk_order`, so that each chunk of a stored series is read
            about once. Exact resume and sharding stay as they are; ranks read the same chunks at the same time.
        chunk_rows: rows of a chunk for order "chunk"; None takes those of a `ChunkedSeries`.
        memory_chunks: chunks that order "chunk" may count on being held, by the page cache for a memory map; None takes those
            of a `ChunkedSeries`.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.
        RuntimeError: the series lies on another accelerator than `device`.

    Example:
        >>> import torch, stprune
        >>> from stprune.loader import WindowLoader
        >>> loader = WindowLoader(torch.arange(40.0).reshape(20, 2), batch_size=10, history=3, horizon=2)
        >>> [(index.tolist()[-1], x.shape, y.shape) for index, x, y in loader]
        [(9, torch.Size([10, 3, 2, 1]), torch.Size([10, 2, 2, 1])), (15, torch.Size([6, 3, 2, 1]), torch.Size([6, 2, 2, 1]))]

    Source:
        Windows of `WindowDataset`; node draws of methods/README.md, eq. 12-13.
    """

    def __init__(
        self,
        series: Tensor | np.ndarray[Any, Any] | ChunkedSeries,
        sampler: PruningSampler | Iterable[int] | None = None,
        *,
        batch_size: int,
        history: int = 12,
        horizon: int = 12,
        stride: int = 1,
        start: int = 0,
        stop: int | None = None,
        target_channels: int | Sequence[int] | None = None,
        steps_per_day: int | None = None,
        first_step: int = 0,
        timestamps: np.ndarray[Any, Any] | None = None,
        time_features: Tensor | None = None,
        layout: str = "BTNC",
        mean: float | Tensor | None = None,
        std: float | Tensor | None = None,
        normalize_target: bool = False,
        scale: float | Tensor | None = None,
        offset: float | Tensor | None = None,
        missing: int | None = None,
        fill: float | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        prefetch: int | None = None,
        drop_last: bool = False,
        order: str = "sampler",
        chunk_rows: int | None = None,
        memory_chunks: int | None = None,
    ) -> None:
        self.batch_size = _check.integer(_OP, "batch_size", batch_size, 1)
        self.history = _check.integer(_OP, "history", history, 1)
        self.horizon = _check.integer(_OP, "horizon", horizon, 1)
        self.stride = _check.integer(_OP, "stride", stride, 1)
        self.drop_last = bool(drop_last)
        self._stored = StoredWindows(series) if isinstance(series, ChunkedSeries) else None
        source = series if self._stored is None else self._stored.placeholder()
        self._file = None if isinstance(source, Tensor) else mapped_file(source)
        self._pages = MappedPages(series)
        tensor = as_series(_OP, source if isinstance(source, Tensor) else as_tensor(_OP, source))
        clock = steps_per_day is not None or timestamps is not None
        if clock and time_features is not None:
            raise ValueError(f"{_OP}: time_features must be None with steps_per_day or timestamps, got both")
        if clock:
            wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
            time_features = features_of_clock(
                tensor.shape[0], steps_per_day=steps_per_day, first_step=first_step, timestamps=timestamps, dtype=wide
            )
        self._recipe = make_recipe(
            _OP,
            tensor,
            layout=layout,
            mean=mean,
            std=std,
            scale=scale,
            offset=offset,
            missing=missing,
            fill=fill,
            time_features=time_features,
            target_channels=target_channels,
            normalize_target=normalize_target,
            dtype=dtype,
        )
        window = self.history + self.horizon
        self.start, self.stop = as_range(_OP, tensor.shape[0], start, stop, window)
        self.num_windows = (self.stop - self.start - window) // self.stride + 1
        self.device = tensor.device if device is None else torch.device(device)
        if tensor.device.type != "cpu":
            if self.device not in (tensor.device, torch.device(tensor.device.type)):
                raise RuntimeError(f"{_OP}: series must be on the CPU or on device {self.device}, got {tensor.device}")
            self.device = tensor.device
        ahead = 0 if self.device.type == "cpu" and self._stored is None and not self._pages else 2
        self.prefetch = ahead if prefetch is None else _check.integer(_OP, "prefetch", prefetch, 0)
        self.sampler = _checked_sampler(sampler, self.num_windows, tensor.shape[1])
        # Our own sampler's ids lie in range by construction.
        self._checks_ids = sampler is not None and not isinstance(sampler, PruningSampler)
        self._chunks = _chunk_settings(order, self.sampler, series, chunk_rows, memory_chunks, window)
        self._window_bytes = window * tensor[0].numel() * tensor.element_size()
        self._memory = self._new_memory()

    def __repr__(self) -> str:
        return (
            f"WindowLoader({self.num_windows} windows of {self.history} + {self.horizon} steps, stride {self.stride}, rows "
            f"[{self.start}, {self.stop}) of {tuple(self._recipe.series.shape)}, batch_size={self.batch_size})"
        )

    # --- the epoch ---------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches that the next `iter` gives."""
        samples = self.num_windows if self.sampler is None else len(self.sampler)  # type: ignore[arg-type]
        full, rest = divmod(samples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: the sampler's `set_epoch`, if it has one. Iterators that are already going are not affected."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state (empty if it has none): a loader adds nothing to it."""
        return dict(self.sampler.state_dict()) if hasattr(self.sampler, "state_dict") else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hand the state to the sampler; the next `iter` continues where it was saved.

        Raises:
            ValueError: the state does not fit the sampler.
        """
        if hasattr(self.sampler, "load_state_dict"):
            self.sampler.load_state_dict(state)
        elif state:
            raise ValueError(f"{_OP}.load_state_dict: state must be empty for a sampler without one, got {sorted(state)}")

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        # The plan is settled here, by the first ids and the epoch of the node draws, not when the thread gets to it.
        ids, draw = self._ids(), self._node_draw()
        first = next(ids, None)
        if first is None:
            return iter(())
        batches = itertools.chain([first], ids)
        if self._recipe.series.device.type != "cpu":
            return (self._resident_batch(each, draw) for each in batches)
        if self.device.type != "cuda":
            return self._ahead(batches, lambda each: self._host_batch(each, draw))
        stream = torch.cuda.Stream(self.device)
        return self._received(self._ahead(batches, lambda each: self._sent_batch(each, draw, stream)))

    # --- ids ---------------------------------------------------------------------------------------------------------

    def _ids(self) -> Iterator[np.ndarray[Any, Any]]:
        if isinstance(self.sampler, PruningSampler):
            yield from self.sampler.batches(self.batch_size, drop_last=self.drop_last, order=self._order(self.sampler))
            return
        source = iter(range(self.num_windows) if self.sampler is None else self.sampler)
        while chunk := list(itertools.islice(source, self.batch_size)):
            if len(chunk) == self.batch_size or not self.drop_last:
                # operator.index refuses floats, which an array would cut off.
                yield np.fromiter(map(operator.index, chunk), np.int64, len(chunk))

    def _order(self, sampler: PruningSampler) -> Tensor | None:
        if self._chunks is None:
            return None
        chunk, memory = self._chunks
        return chunk_order(
            sampler.plan,
            chunk=chunk,
            memory_chunks=memory,
            history=self.history,
            horizon=self.horizon,
            stride=self.stride,
            start=self.start,
            seed=sampler.seed,
            epoch=sampler.epoch,
        )

    def _node_draw(self) -> NodeDraw | None:
        sampler = self.sampler
        if not isinstance(sampler, PruningSampler) or (sampler.node_ratio == 1.0 and sampler.granularity != "pair"):
            return None
        return sampler.node_draw()

    def _windows(self, index: Tensor) -> Tensor:
        return self.sampler.windows(index) if isinstance(self.sampler, PruningSampler) else index

    def _index(self, ids: np.ndarray[Any, Any]) -> Tensor:
        if self._checks_ids:
            low, high = int(np.minimum.reduce(ids)), int(np.maximum.reduce(ids))
            if low < 0 or high >= self.num_windows:
                bad = low if low < 0 else high
                raise ValueError(f"{_OP}: sampler must yield ids in [0, {self.num_windows - 1}], got {bad}")
        # A copy: ids may be a stretch of an array that somebody else still uses.
        return torch.from_numpy(ids.copy())

    # --- batches -----------------------------------------------------------------------------------------------------

    def _ahead(self, batches: Iterator[Any], make: Callable[[Any], Any]) -> Iterator[Any]:
        return in_background(batches, make, self.prefetch) if self.prefetch else (make(each) for each in batches)

    def _host_batch(self, ids: np.ndarray[Any, Any], draw: NodeDraw | None, *, pinned: bool = False) -> tuple[Tensor, ...]:
        index = self._index(ids)
        node = None if draw is None else draw(index)
        num_nodes = self._recipe.series.shape[1] if node is None else node.shape[1]
        count, recipe = len(ids), self._recipe
        shapes = recipe.shapes(count, num_nodes, self.history, self.horizon)
        dtype = recipe.dtype
        if pinned:
            x, y = (torch.empty(shape, dtype=dtype, pin_memory=True) for shape in shapes)
        else:
            x, y = (
                # A block takes a full batch, so that a smaller one does not need its own.
                memory.empty(shape, dtype, capacity=math.prod(shape) // count * self.batch_size)
                for memory, shape in zip(self._memory, shapes, strict=True)
            )
        # A thread beside training on the CPU takes one core and leaves the others alone; it is far ahead even so.
        parallel = pinned or self.prefetch == 0
        # Small numbers are NumPy's: a call of torch takes longer than their whole work.
        rows = torch.from_numpy(self.start + self.stride * self._windows(index).numpy())
        if self._stored is not None:
            with self._stored.staged(recipe, rows, self.history + self.horizon) as (staged, first):
                staged.fill_in(first, node, x, y, parallel=parallel)
        elif self._pages:
            # A layout that does not begin with the batch cannot be filled by parts.
            for part in self._pages.portions(count, self._window_bytes, whole=recipe.layout[0] != "B"):
                recipe.fill_in(rows[part], None if node is None else node[part], x[part], y[part], parallel=parallel)
        else:
            recipe.fill_in(rows, node, x, y, parallel=parallel)
        batch = (index, x, y) if node is None else (index, node, x, y)
        return batch if pinned or self.device.type == "cpu" else tuple(part.to(self.device) for part in batch)

    def _sent_batch(
        self, ids: np.ndarray[Any, Any], draw: NodeDraw | None, stream: torch.cuda.Stream
    ) -> tuple[tuple[Tensor, ...], torch.cuda.Event]:
        batch = self._host_batch(ids, draw, pinned=True)
        with torch.cuda.stream(stream):
            # The allocator of pinned memory knows of these copies and gives no block away before they are done.
            sent = tuple((part if part.is_pinned() else part.pin_memory()).to(self.device, non_blocking=True) for part in batch)
            return sent, stream.record_event()

    def _received(self, batches: Iterator[tuple[tuple[Tensor, ...], torch.cuda.Event]]) -> Iterator[tuple[Tensor, ...]]:
        for batch, event in batches:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            for part in batch:
                part.record_stream(current)
            yield batch
            del batch

    def _resident_batch(self, ids: np.ndarray[Any, Any], draw: NodeDraw | None) -> tuple[Tensor, ...]:
        series = self._recipe.series
        index = self._index(ids).to(series.device, non_blocking=True)
        node = None if draw is None else draw(index)
        num_nodes = series.shape[1] if node is None else node.shape[1]
        shapes = self._recipe.shapes(len(ids), num_nodes, self.history, self.horizon)
        x, y = (torch.empty(shape, dtype=self._recipe.dtype, device=series.device) for shape in shapes)
        self._recipe.fill_in(self.start + self.stride * self._windows(index), node, x, y)
        return (index, x, y) if node is None else (index, node, x, y)

    # --- copies ------------------------------------------------------------------------------------------------------

    def _new_memory(self) -> tuple[Memory, Memory]:
        # What may come back at once: the batches made ahead, the one in use and the one before.
        return Memory(self.prefetch + 2), Memory(self.prefetch + 2)

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and other processes; a memory map travels as its file's name, not as its contents."""
        state = {**self.__dict__, "_memory": None, "_pages": None}
        if self._file is not None:
            state["_recipe"] = dataclasses.replace(self._recipe, series=torch.empty(0))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a copy; a memory map is opened again read-only."""
        self.__dict__.update(state)
        self._memory = self._new_memory()
        series = None if self._file is None else np.memmap(**self._file, mode="r")
        self._pages = MappedPages(series)
        if series is not None:
            self._recipe = dataclasses.replace(self._recipe, series=as_series(_OP, as_tensor(_OP, series)))


def _checked_sampler(sampler: Any, num_windows: int, num_nodes: int) -> Any:
    if isinstance(sampler, PruningSampler):
        if sampler.num_windows != num_windows:
            raise ValueError(f"{_OP}: sampler must have {num_windows} samples, one a window, got {sampler.num_windows}")
        if (sampler.node_ratio < 1.0 or sampler.granularity == "pair") and sampler.num_nodes != num_nodes:
            raise ValueError(f"{_OP}: sampler must have num_nodes = {num_nodes} as the series has, got {sampler.num_nodes}")
    elif sampler is not None and not (isinstance(sampler, Iterable) and isinstance(sampler, Sized)):
        raise TypeError(
            f"{_OP}: sampler must be a PruningSampler, a sized iterable of ids or None, got {type(sampler).__name__}"
        )
    return sampler


def _chunk_settings(
    order: Any, sampler: Any, series: Any, chunk_rows: Any, memory_chunks: Any, window: int
) -> tuple[int, int] | None:
    """Rows of a chunk and how many are held, or None for the sampler's own order."""
    if _check.choice(_OP, "order", order, ("sampler", "chunk")) == "sampler":
        for name, value in (("chunk_rows", chunk_rows), ("memory_chunks", memory_chunks)):
            if value is not None:
                raise ValueError(f'{_OP}: {name} must be None unless order is "chunk", got {value!r}')
        return None
    if not isinstance(sampler, PruningSampler) or sampler.granularity == "pair":
        raise ValueError(f'{_OP}: order must be "sampler" without a PruningSampler of windows, got {order!r}')
    if isinstance(series, ChunkedSeries):
        chunk_rows = series.chunk if chunk_rows is None else chunk_rows
        memory_chunks = series.memory_chunks if memory_chunks is None else memory_chunks
    chunk = _check.integer(_OP, "chunk_rows", chunk_rows, 1)
    least = 1 - (-(window - 1) // chunk)
    return chunk, _check.integer(_OP, "memory_chunks", memory_chunks, least)
