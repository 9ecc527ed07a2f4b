"""The demo's split of a series and its batches, gathered by index arithmetic straight from the series."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stprune.demo.data import DemoSeries

HISTORY = 12
HORIZON = 12
# Enough windows that an epoch holds some 60 steps, few enough that a score table fills within minutes.
_TARGET_TRAIN_WINDOWS = 4200
_VALIDATION_WINDOWS = 512


@dataclass(frozen=True)
class Split:
    """First steps of the windows of each part; no window crosses a border.

    Attributes:
        train: [num_train] int64, every `stride`-th step of the first 60%.
        validation: [num_validation] int64, a fixed subset of the next 20%.
        test: [num_test] int64, every step of the last 20%.
        stride: steps between two training windows.
        border: steps at which validation and test begin.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    stride: int
    border: tuple[int, int]


@dataclass(frozen=True)
class Problem:
    """A series ready for training: normalised, on its device, split.

    Attributes:
        values: [time * nodes] float32, in the series' unit; NaN where missing.
        inputs: [time * nodes] float32, z-score by the training part's mean and standard deviation; 0 where missing.
        calendar: [2, time] float32, time of day and day of week, each in [0, 1).
        num_nodes: nodes of the series.
        mean: of the training part, one number for all nodes.
        std: of the training part.
        split: the windows.
        complete: no value is missing, so that no mask is needed.
        mape_floor: targets smaller than this do not enter the MAPE: a tenth of `std`.
    """

    values: Tensor
    inputs: Tensor
    calendar: Tensor
    num_nodes: int
    mean: float
    std: float
    split: Split
    complete: bool
    mape_floor: float

    @property
    def device(self) -> torch.device:
        """Device the series lies on."""
        return self.values.device

    def batch(self, start: Tensor, node: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gather windows; with drawn nodes nothing else is read or copied.

        Args:
            start: [B] int64, first steps.
            node: [B, m] int64, or None for all nodes.

        Returns:
            x [B, 12, N or m, 3] (normalised value, time of day, day of week) and y [B, 12, N or m, 1] in the
            series' unit.
        """
        step = start[:, None] + torch.arange(HISTORY, device=start.device)
        if node is None:
            shape = (len(start), -1, self.num_nodes)
            value = self.inputs.view(-1, self.num_nodes).index_select(0, step.view(-1)).view(shape)
            y = self.values.view(-1, self.num_nodes).index_select(0, (step + HISTORY).view(-1)).view(shape)
        else:
            cell = step[:, :, None] * self.num_nodes + node[:, None, :]
            value = self.inputs.index_select(0, cell.view(-1)).view(cell.shape)
            y = self.values.index_select(0, cell.add_(HISTORY * self.num_nodes).view(-1)).view(cell.shape)
        # Channels first in memory, so that a model's look at one channel is contiguous.
        x = value.new_empty(len(start), 3, *value.shape[1:])
        x[:, 0] = value
        x[:, 1:] = self.calendar[:, step].transpose(0, 1)[..., None]
        return x.permute(0, 2, 3, 1), y.unsqueeze(-1)


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
    num_steps, num_nodes = values.shape
    split = split_windows(num_steps, series.steps_per_day)
    seen = values[: split.border[0]].double()
    seen = seen[torch.isfinite(seen)]
    mean, std = (float(seen.mean()), float(seen.std(correction=0))) if len(seen) else (math.nan, 0.0)
    if not std > 0:
        raise ValueError(f"{series.name}: the training part must hold at least two different values, std is {std}")
    inputs = torch.nan_to_num((values - mean) / std, nan=0.0)
    calendar = np.stack([series.time_of_day, series.day_of_week.astype(np.float32) / 7])
    return Problem(
        values=values.reshape(-1).to(device),
        inputs=inputs.reshape(-1).to(device),
        calendar=torch.from_numpy(calendar).to(device),
        num_nodes=num_nodes,
        mean=mean,
        std=std,
        split=Split(
            train=split.train.to(device),
            validation=split.validation.to(device),
            test=split.test.to(device),
            stride=split.stride,
            border=split.border,
        ),
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
    borders = (int(num_steps * 0.6), int(num_steps * 0.8))
    counts = [borders[0] - length + 1, borders[1] - borders[0] - length + 1, num_steps - borders[1] - length + 1]
    stride = _coprime_below(counts[0] // _TARGET_TRAIN_WINDOWS, steps_per_day)
    skip = _coprime_below(counts[1] // _VALIDATION_WINDOWS, steps_per_day)
    return Split(
        train=torch.arange(0, counts[0], stride),
        validation=torch.arange(borders[0], borders[0] + counts[1], skip),
        test=torch.arange(borders[1], borders[1] + counts[2]),
        stride=stride,
        border=borders,
    )


def _coprime_below(largest: int, other: int) -> int:
    return next((n for n in range(largest, 1, -1) if math.gcd(n, other) == 1), 1)
