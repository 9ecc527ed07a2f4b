"""Windows of a [time, node, channel] series: the data set, the split, the drift and strata, stores beyond memory."""

from __future__ import annotations

from stprune.windows.chunk_order import ChunkReads, chunk_order, count_chunk_reads
from stprune.windows.chunked_series import ChunkedSeries
from stprune.windows.dataset import WindowDataset, split_windows
from stprune.windows.drift import stationarity, stratify
from stprune.windows.score_dataset import score_dataset

__all__ = [
    "ChunkReads",
    "ChunkedSeries",
    "WindowDataset",
    "chunk_order",
    "count_chunk_reads",
    "score_dataset",
    "split_windows",
    "stationarity",
    "stratify",
]
