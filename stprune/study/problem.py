"""A series ready for training: split into parts, normalised, cut into windows."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import stprune
from stprune.study.graph import Edges, nearest_nodes
from stprune.study.series import Series

HISTORY = 12
HORIZON = 12
# Enough windows that an epoch holds some 60 steps of 64, few enough that a score table fills within minutes.
_TRAIN_WINDOWS = 4200
# Of the parts that are only looked at so many (window, node) pairs are enough, and at least so many windows.
_VALIDATION_PAIRS, _TEST_PAIRS = 30_000, 150_000
_FEWEST_WINDOWS = 32


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
        validation: windows of the next 20%, evenly spaced.
        test: the same of the last 20%.
    """

    train: Part
    validation: Part
    test: Part


@dataclass(frozen=True)
class Problem:
    """A series ready for training: on its device, split, with what normalises it.

    Attributes:
        name: of the series.
        values: [time, node] float32, in the series' unit; NaN where missing.
        calendar: [time, 2] float32, time of day and day of week, each in [0, 1).
        mean: of the training part, one number for all nodes.
        std: of the training part.
        split: the windows.
        complete: no value is missing, so that no mask is needed.
        mape_floor: targets smaller than this do not enter the MAPE: a tenth of `std`.
        steps_per_day: of the series.
        edges: the series' own graph, None where it has none.
    """

    name: str
    values: Tensor
    calendar: Tensor
    mean: float
    std: float
    split: Split
    complete: bool
    mape_floor: float
    steps_per_day: int
    edges: Edges | None = None

    @property
    def device(self) -> torch.device:
        """Device the series lies on."""
        return self.values.device

    @property
    def num_nodes(self) -> int:
        """Nodes of the series."""
        return int(self.values.shape[1])

    def cut(self, part: Part, index: Tensor, node: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """History and horizon of some windows of a part, straight from the series.

        Args:
            part: of the split.
            index: [B] int64, numbers of windows in the part.
            node: [B, m] int64, nodes of each window; None for all nodes in order.

        Returns:
            x [B, 12, N or m, 3]: normalised value (0 where missing), time of day, day of week; y [B, 12, N or m, 1] in the
            series' unit, NaN where missing.
        """
        x, y = stprune.gather_windows(
            self.values,
            part.start + part.stride * index,
            history=HISTORY,
            horizon=HORIZON,
            node=node,
            time_features=self.calendar,
            mean=self.mean,
            std=self.std,
            fill=None if self.complete else 0.0,
            # Channels first in memory, so that a model's look at one channel is contiguous.
            layout="BCTN",
        )
        return x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)

    @functools.cached_property
    def graph(self) -> Edges:
        """The series' own graph, or that of its most correlated nodes; made when asked."""
        return self.edges or nearest_nodes(self.values[: self.split.train.stop])

    @functools.cached_property
    def adjacency(self) -> Tensor:
        """[node, node] float32, not negative: `graph` as a dense matrix."""
        return torch.from_numpy(self.graph.dense()).to(self.device)

    @property
    def pairs(self) -> int:
        """(window, node) pairs of the training part: those of cost 1."""
        return len(self.split.train) * self.num_nodes


def prepare(series: Series, *, device: torch.device) -> Problem:
    """Split a series 6:2:2 in time order and normalise it by its first part.

    Args:
        series: not modified.
        device: where the series is kept.

    Returns:
        The problem; missing values are NaN in `values`.

    Raises:
        ValueError: the series is too short for windows of 24 steps in every part, holds infinite values, its training part is
            constant or wholly missing, or the windows of another part have no target.
    """
    values = torch.from_numpy(np.ascontiguousarray(series.values))
    if torch.isinf(values).any():
        raise ValueError(f"{series.name}: values must be finite or NaN, got infinite ones")
    if series.null_value is not None:
        values = torch.where(values == series.null_value, torch.nan, values)
    split = split_windows(len(values), series.steps_per_day, values.shape[1])
    seen = values[: split.train.stop].double()
    seen = seen[torch.isfinite(seen)]
    mean, std = (float(seen.mean()), float(seen.std(correction=0))) if len(seen) else (math.nan, 0.0)
    if not std > 0:
        raise ValueError(f"{series.name}: the training part must hold at least two different values, got std {std}")
    for name, part in (("validation", split.validation), ("test", split.test)):
        rows = np.unique(part.first_rows[:, None] + HISTORY + np.arange(HORIZON))
        if not torch.isfinite(values[rows]).any():
            raise ValueError(f"{series.name}: the windows of the {name} part must have targets, got missing values only")
    calendar = np.stack([series.time_of_day, series.day_of_week.astype(np.float32) / 7], axis=1)
    return Problem(
        name=series.name,
        values=values.to(device),
        calendar=torch.from_numpy(calendar).to(device),
        mean=mean,
        std=std,
        split=split,
        complete=bool(torch.isfinite(values).all()),
        mape_floor=0.1 * std,
        steps_per_day=series.steps_per_day,
        edges=series.edges,
    )


def split_windows(num_steps: int, steps_per_day: int, num_nodes: int) -> Split:
    """Choose the windows of a chronological 6:2:2 split.

    Windows overlap heavily, so a part with more windows than needed takes every `stride`-th; the stride shares no factor with
    the day, so that every time of day occurs.

    Args:
        num_steps: steps of the series.
        steps_per_day: steps in 24 hours.
        num_nodes: nodes of the series: validation and test take fewer windows where there are many.

    Returns:
        The split.

    Raises:
        ValueError: the series is shorter than 120 steps, so that a part could not hold a window.
    """
    length = HISTORY + HORIZON
    if num_steps < 5 * length:
        raise ValueError(f"the series must have at least {5 * length} steps for a 6:2:2 split, got {num_steps}")
    first, second = int(num_steps * 0.6), int(num_steps * 0.8)

    def part(start: int, stop: int, wanted: int) -> Part:
        windows = stop - start - length + 1
        return Part(start, stop, _coprime_below(windows // max(wanted, _FEWEST_WINDOWS), steps_per_day))

    return Split(
        train=part(0, first, _TRAIN_WINDOWS),
        validation=part(first, second, _VALIDATION_PAIRS // num_nodes),
        test=part(second, num_steps, _TEST_PAIRS // num_nodes),
    )


def _coprime_below(largest: int, other: int) -> int:
    return next((n for n in range(largest, 1, -1) if math.gcd(n, other) == 1), 1)
