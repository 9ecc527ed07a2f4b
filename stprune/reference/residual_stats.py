"""Reference of residual_stats: eq. 1-3 in float64, and the gradient of the per-sample loss."""

from __future__ import annotations

import torch


def kept_entries(target: torch.Tensor, mask: torch.Tensor | None, null_value: float | None) -> torch.Tensor:
    """Which entries count, bool of the target's shape: the mask's, less null and NaN targets."""
    kept = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
    if null_value is not None:
        # Rounded to the data's dtype first: 0.1 marks the entries that hold bfloat16's nearest to 0.1.
        null = target.new_full((), null_value, dtype=torch.float64).to(target.dtype)
        kept = kept & (target != null) & ~target.isnan()
    return kept


def _spread(u: torch.Tensor, kept: torch.Tensor, dim: int) -> torch.Tensor:
    """Population standard deviation of the means over `dim`; groups without entries are left out."""
    count = kept.sum(dim)
    present = count > 0
    mean = u.sum(dim) / count.clamp(min=1)
    groups = present.sum(1).clamp(min=1)
    centre = torch.where(present, mean, 0.0).sum(1) / groups
    deviation = torch.where(present, mean - centre[:, None], 0.0)
    return (deviation.square().sum(1) / groups).sqrt()


def residual_stats(
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    null_value: float | None,
    loss: str,
    huber_delta: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, spatial and temporal spread and count of every sample of [B, T, F] prediction and target."""
    kept = kept_entries(target, mask, null_value)
    u = torch.where(kept, prediction.double() - target.double(), 0.0).abs()
    if loss == "mae":
        term = u
    elif loss == "mse":
        term = u.square()
    else:
        term = torch.where(u <= huber_delta, 0.5 * u.square(), huber_delta * (u - 0.5 * huber_delta))
    count = kept.sum((1, 2))
    mean = term.sum((1, 2)) / count.clamp(min=1)
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    return mean.to(dtype), _spread(u, kept, 1).to(dtype), _spread(u, kept, 2).to(dtype), count


def residual_stats_backward(
    grad_loss: torch.Tensor,
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    null_value: float | None,
    loss: str,
    huber_delta: float,
    count: torch.Tensor,
) -> torch.Tensor:
    """Gradient of sum_b grad_loss[b] * loss[b] with respect to the prediction, in its dtype."""
    kept = kept_entries(target, mask, null_value)
    error = torch.where(kept, prediction.double() - target.double(), 0.0)
    if loss == "mae":
        slope = error.sign()
    elif loss == "mse":
        slope = 2.0 * error
    else:
        slope = error.clamp(-huber_delta, huber_delta)
    scale = grad_loss.double() / count.clamp(min=1)
    return torch.where(kept, scale[:, None, None] * slope, 0.0).to(prediction.dtype)
