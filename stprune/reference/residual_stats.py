"""Reference of residual_stats: eq. 1-3 in float64, for windows and for single nodes."""

from __future__ import annotations

import torch

from stprune.reference import pruned_loss as fused
from stprune.reference.pruned_loss import kept_entries

__all__ = ["kept_entries", "node_stats", "residual_stats"]

_Four = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def residual_stats(
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    null_value: float | None,
    null_tolerance: float,
    loss: int,
    parameter: float,
) -> _Four:
    """Loss, spatial and temporal spread and count of every sample of [B, T, ...] prediction and target."""
    options = (mask, None, None, None, None, null_value, null_tolerance, loss, parameter, 0.0, 0.0, False)
    _, mean, statistics, count, _ = fused.pruned_loss(prediction, target, *options)
    return mean, statistics[0], statistics[1], count[:-1]


def node_stats(
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    null_value: float | None,
    null_tolerance: float,
    loss: int,
    parameter: float,
) -> _Four:
    """The same for every node of [B, T, nodes ..., C] by itself: [B, nodes ...] values, over its steps and channels."""
    shape = (prediction.shape[0], *prediction.shape[2:-1])

    def alone(x: torch.Tensor) -> torch.Tensor:
        # [B * nodes, T, C]
        return x.movedim(1, -2).reshape(-1, x.shape[1], x.shape[-1])

    pair = alone(prediction), alone(target)
    stats = residual_stats(*pair, None if mask is None else alone(mask), null_value, null_tolerance, loss, parameter)
    mean, spatial, temporal, count = (value.view(shape) for value in stats)
    return mean, spatial, temporal, count
