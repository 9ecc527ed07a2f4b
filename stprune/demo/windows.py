"""The demo's split of a series and its batches, cut straight from the series by `WindowLoader`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import stprune
from stprune.demo.data import DemoSeries

HISTORY = 12
HORIZON = 12
# Enough windows that an epoch holds some 60 steps, few enough that a score table fills within minutes.
_TARGET_TRAIN_WINDOWS = 4200
_VALIDATION_WINDOWS = 512


@dataclass(frozen=True)
class Part:
    """The windows of one part of the series.

    Attributes:
        start: first row that may be used.
        stop: row behind the last that may be used.
        stride: rows between the starts of neighbouring windows.
    """

    start: int
    stop: int
    stride: int

    def __len__(self) -> int:
        """Number of windows."""
        return (self.stop - self.start - HISTORY - HORIZON) // self.stride + 1

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """[num_windows] int64: the row at which each window begins."""
        return self.start + self.stride * np.arange(len(self))


@dataclass(frozen=True)
class Split:
    """The parts of the series; no window crosses a border.

    Attributes:
        train: every `stride`-th window of the first 60%.
        validation: a fixed subset of the windows of the next 20%.
        test: every window of the last 20%.
    """

    train: Part
    validation: Part
    test: Part


@dataclass(frozen=True)
class Batch:
    """A batch of windows.

    Attributes:
        index: [B] int64, numbers of the windows in their part.
        node: [B, m] int64, the drawn nodes, or None for all of them.
        x: [B, 12, N or m, 3] (normalised value, time of day, day of week).
        y: [B, 12, N or m, 1] in the series' unit.
    """

    index: Tensor
    node: Tensor | None
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Problem:
    """A series ready for training: on its device, split, with what normalises it.

    Attributes:
        values: [time, node] float32, in the series' unit; NaN where missing.
        calendar: [time, 2] float32, time of day and day of week, each in [0, 1).
        mean: of the training part, one number for all nodes.
        std: of the training part.
        split: the windows.
        complete: no value is missing, so that no mask is needed.
        mape_floor: targets smaller than this do not enter the MAPE: a tenth of `std`.
    """

    values: Tensor
    calendar: Tensor
    mean: float
    std: float
    split: Split
    complete: bool
    mape_floor: float

    @property
    def device(self) -> torch.device:
        """Device the series lies on."""
        return self.values.device

    @property
    def num_nodes(self) -> int:
        """Nodes of the series."""
        return int(self.values.shape[1])

    def batches(self, part: Part, sampler: Any = None, *, batch_size: int) -> Iterator[Batch]:
        """Windows of a part by `WindowLoader`, cut and normalised straight from the series; only drawn nodes are read.

        Args:
            part: of the split.
            sampler: a `PruningSampler` or a sized iterable of window numbers; None: all windows in order.
            batch_size: windows of a batch.

        Yields:
            The batches of the sampler's current epoch.
        """
        loader = stprune.WindowLoader(
            self.values,
            sampler,
            batch_size=batch_size,
            history=HISTORY,
            horizon=HORIZON,
            stride=part.stride,
            start=part.start,
            stop=part.stop,
            time_features=self.calendar,
            mean=self.mean,
            std=self.std,
            fill=None if self.complete else 0.0,
            # Channels first in memory, so that a model's look at one channel is contiguous.
            layout="BCTN",
        )
        for index, *node, x, y in loader:
            yield Batch(index, node[0] if node else None, x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1))


def prepare(series: DemoSeries, *, device: torch.device, null_value: float | None = None) -> Problem:
    """Split a series 6:2:2 in time order and normalise it by its first part.

    Args:
        series: not modified.
        device: where the series is kept.
        null_value: value that means "missing", besides NaN.

    Returns:
        The problem; missing values are NaN in `values`.

    Raises:
        ValueError: the series is too short for windows of 24 steps in every part, or its training part is constant
            or wholly missing.
    """
    values = torch.from_numpy(np.ascontiguousarray(series.values))
    if null_value is not None:
        values = torch.where(values == null_value, torch.nan, values)
    split = split_windows(len(values), series.steps_per_day)
    seen = values[: split.train.stop].double()
    seen = seen[torch.isfinite(seen)]
    mean, std = (float(seen.mean()), float(seen.std(correction=0))) if len(seen) else (math.nan, 0.0)
    if not std > 0:
        raise ValueError(f"{series.name}: the training part must hold at least two different values, std is {std}")
    calendar = np.stack([series.time_of_day, series.day_of_week.astype(np.float32) / 7], axis=1)
    return Problem(
        values=values.to(device),
        calendar=torch.from_numpy(calendar).to(device),
        mean=mean,
        std=std,
        split=split,
        complete=bool(torch.isfinite(values).all()),
        mape_floor=0.1 * std,
    )


def split_windows(num_steps: int, steps_per_day: int) -> Split:
    """Choose the windows of a chronological 6:2:2 split.

    Windows overlap heavily, so the training part takes every `stride`-th; the stride shares no factor with the day, so
    that every time of day occurs.

    Args:
        num_steps: steps of the series.
        steps_per_day: steps in 24 hours.

    Returns:
        The split.

    Raises:
        ValueError: the series is shorter than 120 steps, so that a part could not hold a window.
    """
    length = HISTORY + HORIZON
    if num_steps < 5 * length:
        raise ValueError(f"the series must have at least {5 * length} steps for a 6:2:2 split, got {num_steps}")
    first, second = int(num_steps * 0.6), int(num_steps * 0.8)
    train, validation = first - length + 1, second - first - length + 1
    return Split(
        train=Part(0, first, _coprime_below(train // _TARGET_TRAIN_WINDOWS, steps_per_day)),
        validation=Part(first, second, _coprime_below(validation // _VALIDATION_WINDOWS, steps_per_day)),
        test=Part(second, num_steps, 1),
    )


def _coprime_below(largest: int, other: int) -> int:
    return next((n for n in range(largest, 1, -1) if math.gcd(n, other) == 1), 1)
