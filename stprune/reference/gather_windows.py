"""Reference of gather_windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gather_windows(
    series: Tensor,
    start: Tensor,
    node: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    scale: Tensor | None,
    offset: Tensor | None,
    missing: int | None,
    fill: float | None,
    time_features: Tensor | None,
    channels: Sequence[int],
    normalize_target: bool,
    parallel: bool,
    x: Tensor,
    y: Tensor,
) -> None:
    """Fill x [B, history, m, C + features] and y [B, horizon, m, targets] from series [time, N, C].

    start [B] int64, node [B, m] int64 or None; mean, std, scale, offset [N, C] or [1, 1], float64 for a float64 series and
    float32 otherwise, which is also what is computed in; time_features [time, features] of x's dtype. `parallel` only says
    how fast.
    """
    rows = start[:, None] + torch.arange(x.shape[1] + y.shape[1], device=series.device)
    past, future = rows[:, : x.shape[1]], rows[:, x.shape[1] :]
    num_channels = series.shape[2]
    inputs = _values(series, past, node, range(num_channels), scale, offset, missing)
    inputs = _normalized(inputs, node, range(num_channels), mean, std)
    if fill is not None:
        inputs = torch.where(torch.isnan(inputs), fill, inputs)
    x[..., :num_channels] = inputs.to(x.dtype)
    if time_features is not None:
        x[..., num_channels:] = time_features[past][:, :, None, :]
    targets = _values(series, future, node, channels, scale, offset, missing)
    if normalize_target:
        targets = _normalized(targets, node, channels, mean, std)
    y.copy_(targets.to(y.dtype))


def _values(
    series: Tensor,
    rows: Tensor,
    node: Tensor | None,
    channels: Sequence[int],
    scale: Tensor | None,
    offset: Tensor | None,
    missing: int | None,
) -> Tensor:
    """[B, steps, m, channels] of the series; decoded and in float32 if it is int16."""
    raw = series[rows] if node is None else series[rows[:, :, None], node[:, None, :]]
    raw = _chosen(raw, channels)
    if series.dtype != torch.int16:
        return raw
    values = raw.to(torch.float32)
    if scale is not None:
        values = values * _entries(scale, node, channels)
    if offset is not None:
        values = values + _entries(offset, node, channels)
    return values if missing is None else values.masked_fill(raw == missing, torch.nan)


def _normalized(
    values: Tensor, node: Tensor | None, channels: Sequence[int], mean: Tensor | None, std: Tensor | None
) -> Tensor:
    if mean is None or std is None:
        return values
    return (values.to(mean.dtype) - _entries(mean, node, channels)) / _entries(std, node, channels)


def _entries(table: Tensor, node: Tensor | None, channels: Sequence[int]) -> Tensor:
    """What of a [N, C] or [1, 1] table belongs to [B, steps, m, channels] values, to broadcast."""
    if table.numel() == 1:
        return table
    return _chosen(table if node is None else table[node][:, None], channels)


def _chosen(values: Tensor, channels: Sequence[int]) -> Tensor:
    if list(channels) == list(range(values.shape[-1])):
        return values
    return values[..., torch.tensor(list(channels), device=values.device)]
