"""WindowLoader: batches of windows cut straight from the series."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stprune.ops import _check
from stprune.ops._window_recipe import make_recipe
from stprune.passes import num_parts
from stprune.prefetch import Memory, in_background
from stprune.reference.precision import accumulator
from stprune.sampler import PruningSampler
from stprune.windows.chunk_order import chunk_order, chunk_settings
from stprune.windows.chunked_series import ChunkedSeries
from stprune.windows.clock import clock_features
from stprune.windows.ids import ids_of
from stprune.windows.sources import source_of
from stprune.windows.starts import WindowStarts

_OP = "WindowLoader"

NodeDraw = Callable[[Tensor], Tensor]


class WindowLoader:
    """Batches of windows, in a sampler's order, cut from the series in one pass: no window is stored, no process started.

    Takes the place of ``DataLoader(IndexedDataset(WindowDataset(series, ...)), batch_size, sampler=sampler)``: window i begins
    at row ``start + stride * i``, windows over a gap in `timestamps` are left out (`num_dropped` and `repr` say how many), and
    the same sampler gives the same batches, bit for bit. Iterating yields ``(index, x, y)`` or, where the sampler draws nodes
    (``node_ratio`` < 1 or "auto") or pairs, ``(index, node, x, y)``, on `device`.

    Where the series lies says how: a series on the GPU is gathered there; one in host memory is gathered on the host, for a
    GPU by a thread `prefetch` batches ahead and copied from pinned memory beside the computation; of a memory-mapped file only
    the rows of the windows are read, and no more than about 64 MiB of it stay in the process. Batches are the caller's to keep;
    on the CPU their memory is used again once nothing refers to it. An iterator belongs to the epoch of its first `next`; two
    iterators over one epoch give the same, in any interleaving. One that is dropped half-way ends its thread.

    Args:
        series: [time, node, channel] or [time, node], float32, float64, float16, bfloat16 or int16; tensor, array,
            ``np.memmap``, or a `ChunkedSeries` over an HDF5 data set, a Zarr array or anything else that is sliced. Kept by
            reference, never modified.
        sampler: a `PruningSampler` over the windows, any sized iterable of window ids, or None: all windows in order, as for
            validation and test. Only a PruningSampler has a state and can take its node draws and `order` "chunk".
        batch_size: windows in a batch, at least 1; the last batch may hold fewer.
        history, horizon: rows of x and of y, at least 1.
        stride: rows between the starts of neighbouring windows, at least 1.
        start, stop: rows [start, stop) that may be used (see `split_windows`); stop None is the end of the series.
        target_channels: channel or distinct channels of y; None is all.
        steps_per_day, first_step, timestamps: append time of day and day of week to x, as `WindowDataset` does.
        time_features: [time, feature] floating in their place: a row's own channels, appended to x unchanged. Timestamps that
            come with them only say where gaps are.
        gaps: "drop", "keep" or "raise" windows over a gap in `timestamps`, as `WindowDataset` does.
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
        timestamps: Any = None,
        time_features: Tensor | None = None,
        gaps: str = "drop",
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
        self.drop_last = bool(drop_last)
        self._source = source_of(_OP, series)
        tensor = self._source.series
        length = self.history + self.horizon
        self._starts = WindowStarts(
            _OP, tensor.shape[0], length=length, stride=stride, start=start, stop=stop, timestamps=timestamps, gaps=gaps
        )
        if steps_per_day is not None and time_features is not None:
            raise ValueError(f"{_OP}: time_features must be None with steps_per_day, got both")
        if time_features is None and (steps_per_day is not None or timestamps is not None):
            wide = accumulator(tensor.dtype)
            time_features = clock_features(
                _OP, tensor.shape[0], steps_per_day=steps_per_day, first_step=first_step, timestamps=timestamps, dtype=wide
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
        self.stride, self.start, self.stop = self._starts.stride, self._starts.start, self._starts.stop
        self.num_windows, self.num_dropped = len(self._starts), self._starts.num_dropped
        self.device = tensor.device if device is None else torch.device(device)
        if tensor.device.type != "cpu":
            if self.device not in (tensor.device, torch.device(tensor.device.type)):
                raise RuntimeError(f"{_OP}: series must be on the CPU or on device {self.device}, got {tensor.device}")
            self.device = tensor.device
        ahead = 2 if self.device.type != "cpu" else self._source.ahead
        self.prefetch = ahead if prefetch is None else _check.integer(_OP, "prefetch", prefetch, 0)
        self.sampler = sampler
        # Whatever the sampler is, from here on it has the functions of a PruningSampler that this file calls.
        self._ids = ids_of(_OP, sampler, self._starts, tensor.shape[1])
        self._chunks = chunk_settings(_OP, order, self._ids, self._source, chunk_rows, memory_chunks, length)
        # What may come back at once: the batches made ahead, the one in use and the one before.
        self._memory = Memory(self.prefetch + 2), Memory(self.prefetch + 2)

    def __repr__(self) -> str:
        return (
            f"WindowLoader({self.num_windows} windows of {self.history} + {self.horizon} steps, {self._starts} of "
            f"{tuple(self._recipe.series.shape)}, batch_size={self.batch_size})"
        )

    # --- the epoch ---------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches of the whole epoch; the first pass after `load_state_dict` may have fewer."""
        return num_parts(len(self._ids), self.batch_size, drop_last=self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: the sampler's `set_epoch`, if it has one. Iterators that have begun are not affected."""
        self._ids.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The state of a PruningSampler and the order of its ids; empty without one.

        It is right whenever it is taken: the position counts the samples that were trained on, not those read ahead.
        """
        state = self._ids.state_dict()
        return {"order": self._chunks, "sampler": state} if state else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hand the state to the sampler; the next `iter` continues where it was saved. A sampler's own state is taken, too.

        Raises:
            ValueError: the state does not fit the sampler, or its position lies in another order of the ids.
        """
        if set(state) != {"order", "sampler"}:
            self._ids.load_state_dict(state)
            return
        order = None if state["order"] is None else tuple(state["order"])
        if order != self._chunks and not state["sampler"]["finished"] and state["sampler"]["position"] > 0:
            raise ValueError(
                f"{_OP}.load_state_dict: order must be {self._chunks} as in this loader (rows of a chunk, chunks held; None: "
                f"the sampler's order), got {order}: the saved position lies in that one"
            )
        self._ids.load_state_dict(state["sampler"])

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        # It begins with its first `next`, as the sampler does: trainers ask for an iterator before they load a state. Plan and
        # epoch are settled then, not when the thread gets to it.
        device = self._recipe.series.device
        on = None if device.type == "cpu" else device
        ids = iter(self._ids.batches(self.batch_size, drop_last=self.drop_last, order=self._order(), device=on))
        first = next(ids, None)
        if first is None:
            return
        draw = self._ids.node_draw() if self._ids.draws_nodes else None
        batches = itertools.chain([first], ids)
        if on is not None:
            yield from (self._resident_batch(each, draw) for each in batches)
        elif self.device.type != "cuda":
            yield from self._ahead(batches, lambda each: self._host_batch(each, draw))
        else:
            stream = torch.cuda.Stream(self.device)
            yield from self._received(self._ahead(batches, lambda each: self._sent_batch(each, draw, stream)))

    def _order(self) -> Tensor | None:
        if self._chunks is None:
            return None
        chunk, memory = self._chunks
        plan, _ = self._ids.begin_pass(None)
        return chunk_order(
            plan,
            chunk=chunk,
            memory_chunks=memory,
            history=self.history,
            horizon=self.horizon,
            starts=torch.from_numpy(self._starts.all),
            seed=self._ids.seed,
            epoch=self._ids.epoch,
        )

    # --- batches -----------------------------------------------------------------------------------------------------

    def _ahead(self, batches: Iterator[Any], make: Callable[[Any], Any]) -> Iterator[Any]:
        return in_background(batches, make, self.prefetch) if self.prefetch else (make(each) for each in batches)

    def _host_batch(self, ids: np.ndarray[Any, Any], draw: NodeDraw | None, *, pinned: bool = False) -> tuple[Tensor, ...]:
        # A copy: ids may be a stretch of an array that somebody else still uses.
        index = torch.from_numpy(ids.copy())
        node = None if draw is None else draw(index)
        recipe, count = self._recipe, len(ids)
        num_nodes = recipe.series.shape[1] if node is None else node.shape[1]
        shapes = recipe.shapes(count, num_nodes, self.history, self.horizon)
        if pinned:
            x, y = (torch.empty(shape, dtype=recipe.dtype, pin_memory=True) for shape in shapes)
        else:
            x, y = (
                # A block takes a full batch, so that a smaller one does not need its own.
                memory.empty(shape, recipe.dtype, capacity=math.prod(shape) // count * self.batch_size)
                for memory, shape in zip(self._memory, shapes, strict=True)
            )
        # Small numbers are NumPy's: a call of torch takes longer than their whole work.
        rows = torch.from_numpy(self._starts.rows(self._ids.windows(index).numpy()))
        # A thread beside training on the CPU takes one core and leaves the others alone; it is far ahead even so.
        parallel = pinned or self.prefetch == 0
        self._source.fill_in(recipe, rows, self.history + self.horizon, node, x, y, parallel=parallel)
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

    def _resident_batch(self, index: Tensor, draw: NodeDraw | None) -> tuple[Tensor, ...]:
        series = self._recipe.series
        start = self._starts.rows_on(self._ids.windows(index))
        node = None if draw is None else draw(index)
        num_nodes = series.shape[1] if node is None else node.shape[1]
        shapes = self._recipe.shapes(len(index), num_nodes, self.history, self.horizon)
        x, y = (torch.empty(shape, dtype=self._recipe.dtype, device=series.device) for shape in shapes)
        self._recipe.fill_in(start, node, x, y)
        return (index, x, y) if node is None else (index, node, x, y)

    # --- copies ------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and other processes: the series travels once, with its source."""
        return {**self.__dict__, "_recipe": dataclasses.replace(self._recipe, series=torch.empty(0))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a copy."""
        self.__dict__.update(state)
        self._recipe = dataclasses.replace(self._recipe, series=self._source.series)
