"""Chunk-aware order: an epoch's windows shuffled so that each chunk of the stored series is read about once."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stprune.ops import _check, permute
from stprune.windows.starts import rows_of

# Streams of `permute`, beside the shuffles of everything else: runs among each other, and windows inside their group.
_RUNS = 32
_WINDOWS = 33


def chunk_settings(
    op: str, order: Any, ids: Any, source: Any, chunk_rows: Any, memory_chunks: Any, length: int
) -> tuple[int, int] | None:
    """Rows of a chunk and how many chunks are held, for WindowLoader's order "chunk"; None for the sampler's own order."""
    if _check.choice(op, "order", order, ("sampler", "chunk")) == "sampler":
        for name, value in (("chunk_rows", chunk_rows), ("memory_chunks", memory_chunks)):
            if value is not None:
                raise ValueError(f'{op}: {name} must be None unless order is "chunk", got {value!r}')
        return None
    if ids.granularity not in ("window", "node"):
        raise ValueError(f'{op}: order must be "sampler" without a PruningSampler of windows, got {order!r}')
    if getattr(ids, "sharded", False) and not ids.method.uniform:
        raise ValueError(f'{op}: order must be "sampler" where sharded=True, as no rank holds the whole plan, got {order!r}')
    chunk = _check.integer(op, "chunk_rows", source.chunk if chunk_rows is None else chunk_rows, 1)
    held = source.memory_chunks if memory_chunks is None else memory_chunks
    return chunk, _check.integer(op, "memory_chunks", held, 1 + -(-(length - 1) // chunk))


class ChunkReads(NamedTuple):
    """What `count_chunk_reads` counts.

    Attributes:
        reads: chunks read from the store.
        chunks: distinct chunks the windows touch, the least any order reads.
        requests: chunks asked for, one for each chunk of each window: what an order reads without any memory.
    """

    reads: int
    chunks: int
    requests: int


def chunk_order(
    indices: Any,
    *,
    chunk: int,
    history: int,
    horizon: int,
    memory_chunks: int,
    seed: int,
    epoch: int,
    stride: int = 1,
    start: int = 0,
    starts: Tensor | None = None,
    run_chunks: int | None = None,
) -> Tensor:
    """Kept windows in a random order that reads each chunk along time about once within a memory bound.

    A window belongs to the chunk of its first row. Chunks are cut into runs of `run_chunks` neighbours, runs are shuffled,
    and as many as fit together form a group; the windows of a group are shuffled among each other, and groups follow one
    another. A run also needs the chunks that its last windows reach into, ceil((history + horizon - 1) / chunk) of them:
    they count towards the memory and are read again with the run they belong to. So with a cache of `memory_chunks`
    chunks (least recently used first out, as in `ChunkedSeries`) an epoch reads at most 1 + those / `run_chunks` times
    the chunks there are, whatever the seed. Batches mix the windows of some `memory_chunks` chunks only: the larger the
    memory, the better the mixing, and with memory for all chunks the order is a uniform shuffle.

    Args:
        indices: EpochPlan, or [K] int64 distinct window ids >= 0 in any order; not modified.
        chunk: rows of a chunk along time.
        history: rows of a window before its cut, at least 1.
        horizon: rows after it, at least 0.
        memory_chunks: chunks that may be held at a time; at least 1 more than a window's last rows reach into.
        seed: in [0, 2^63).
        epoch: in [0, 2^32).
        stride: rows between the starts of neighbouring windows.
        start: row of window 0.
        starts: [num_windows] int64 first rows in place of `stride` and `start`, as `WindowDataset.starts` has them where gaps
            leave windows out; not modified.
        run_chunks: chunks of a run; None takes a quarter of `memory_chunks`, so that a group has some three runs from
            anywhere in time. More of them read less and mix less.

    Returns:
        [K] int64: every one of `indices` exactly once; the same on every machine and for any number of threads.
        O(K log K).

    Raises:
        TypeError: `indices` is neither an EpochPlan nor an int64 vector, or an integer argument is none.
        ValueError: an index is negative, `memory_chunks` cannot hold one run, or a number is out of range.

    Example:
        >>> import torch
        >>> from stprune.windows import chunk_order, count_chunk_reads
        >>> rows = {"chunk": 100, "history": 12, "horizon": 12, "memory_chunks": 8}
        >>> windows = torch.arange(5000)
        >>> order = chunk_order(windows, **rows, seed=0, epoch=3)
        >>> torch.equal(order.sort().values, windows)
        True
        >>> count_chunk_reads(order, **rows).reads <= 1.5 * 51
        True

    Source:
        Our definition; compare block shuffling of records on disk.
    """
    op = "chunk_order"
    given = indices if isinstance(indices, Tensor) else getattr(indices, "indices", indices)
    ids = _check.index(op, "indices", given).detach().cpu()
    chunk, length, stride, start, memory = _geometry(op, chunk, history, horizon, stride, start, memory_chunks)
    seed, epoch = _check.seed_and_epoch(op, seed, epoch)
    reach = -(-(length - 1) // chunk)
    if memory <= reach:
        raise ValueError(
            f"{op}: memory_chunks must be at least {reach + 1} for windows of {length} rows in chunks of {chunk}, got {memory}"
        )
    if run_chunks is None:
        run = max(1, min(memory - reach, memory // 4))
    else:
        run = _check.integer(op, "run_chunks", run_chunks, 1, memory - reach)
    if ids.numel() == 0:
        return ids.clone()
    if int(ids.min()) < 0:
        raise ValueError(f"{op}: indices must be at least 0, got {int(ids.min())}")

    shuffled = ids.sort().values[permute(ids.numel(), seed=seed, epoch=epoch, stream=_WINDOWS)]
    rows = _rows(op, "indices", shuffled, start, stride, starts)
    last_chunk = (int(rows.max()) + length - 1) // chunk
    first_chunk = int(rows.min()) // chunk
    if last_chunk - first_chunk < memory:
        return shuffled
    # Only runs that hold windows take a place: pruning may have emptied some.
    runs, of_window = torch.unique(rows // (chunk * run), return_inverse=True)
    place = torch.empty_like(runs)
    place[permute(runs.numel(), seed=seed, epoch=epoch, stream=_RUNS)] = torch.arange(runs.numel())
    group = place // (memory // (run + reach))
    return shuffled[group[of_window].sort(stable=True).indices]


def count_chunk_reads(
    order: Any,
    *,
    chunk: int,
    history: int,
    horizon: int,
    memory_chunks: int,
    stride: int = 1,
    start: int = 0,
    starts: Tensor | None = None,
) -> ChunkReads:
    """How many chunks an order of windows reads from the store when the `memory_chunks` last used ones are held.

    A simulation, about a microsecond for each chunk of each window; nothing is read.

    Args:
        order: [K] int64 window ids in the order in which they are read; not modified.
        chunk: rows of a chunk along time.
        history: rows of a window before its cut, at least 1.
        horizon: rows after it, at least 0.
        memory_chunks: chunks held at a time, at least 1.
        stride, start, starts: as in `chunk_order`.

    Returns:
        ChunkReads.

    Raises:
        TypeError: `order` is no int64 vector or an integer argument is none.
        ValueError: a number is out of range.

    Example:
        >>> import torch
        >>> from stprune.windows import count_chunk_reads
        >>> rows = {"chunk": 10, "history": 3, "horizon": 2, "memory_chunks": 2}
        >>> count_chunk_reads(torch.tensor([0, 30, 8, 60, 1]), **rows)
        ChunkReads(reads=5, chunks=4, requests=6)

    Source:
        Our definition.
    """
    op = "count_chunk_reads"
    ids = _check.index(op, "order", order)
    chunk, length, stride, start, memory = _geometry(op, chunk, history, horizon, stride, start, memory_chunks)
    cache: OrderedDict[int, None] = OrderedDict()
    seen: set[int] = set()
    reads = requests = 0
    for row in _rows(op, "order", ids, start, stride, starts).tolist():
        for number in range(row // chunk, (row + length - 1) // chunk + 1):
            requests += 1
            if number in cache:
                cache.move_to_end(number)
                continue
            reads += 1
            seen.add(number)
            cache[number] = None
            if len(cache) > memory:
                cache.popitem(last=False)
    return ChunkReads(reads, len(seen), requests)


def _rows(op: str, name: str, ids: Tensor, start: int, stride: int, starts: Any) -> Tensor:
    """First rows of the windows, and the check that the list of them has them all."""
    if starts is not None:
        starts = _check.index(op, "starts", starts).cpu()
        _check.ids(op, name, ids, len(starts) - 1)
    rows: Tensor = rows_of(ids, start=start, stride=stride, starts=starts)
    return rows


def _geometry(
    op: str, chunk: Any, history: Any, horizon: Any, stride: Any, start: Any, memory_chunks: Any
) -> tuple[int, int, int, int, int]:
    """chunk, length of a window, stride, start and memory, checked."""
    chunk = _check.integer(op, "chunk", chunk, 1)
    length = _check.integer(op, "history", history, 1) + _check.integer(op, "horizon", horizon, 0)
    stride = _check.integer(op, "stride", stride, 1)
    start = _check.integer(op, "start", start, 0)
    return chunk, length, stride, start, _check.integer(op, "memory_chunks", memory_chunks, 1)
