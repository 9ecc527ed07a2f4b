"""Windows of a [time, node, channel] series: the data set, the chronological split, the drift and the strata."""

from __future__ import annotations

from stprune.windows.dataset import WindowDataset, split_windows
from stprune.windows.drift import stationarity, stratify

__all__ = ["WindowDataset", "split_windows", "stationarity", "stratify"]
