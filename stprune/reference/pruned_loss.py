"""Reference of pruned_loss: eq. 1-4 and 13 in float64, and the gradient."""

from __future__ import annotations

import math

import torch

from stprune.reference.precision import accumulator

LOSSES = ("mae", "mse", "huber", "mape", "quantile")
"""The losses; the code of one, in schemas and kernels, is its place."""

_Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def null_bounds(null_value: float, null_tolerance: float, dtype: torch.dtype) -> tuple[float, float]:
    """Between which targets of a dtype one means missing: within null_tolerance of null_value.

    No number lies between the bounds of NaN.
    """
    if null_value != null_value:
        return math.inf, -math.inf
    # Rounded to the data's dtype first: 0.1 marks the entries that hold bfloat16's nearest to 0.1.
    null = float(torch.tensor(null_value, dtype=torch.float64).to(dtype))
    return null - null_tolerance, null + null_tolerance


def normalized_null_bounds(
    null_value: float, null_tolerance: float, dtype: torch.dtype, mean: torch.Tensor, std: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of targets that are (series - mean) / std, where null_value and null_tolerance are in the series' unit.

    Some roundings of the scaler's arithmetic and one of the target's dtype are allowed for.
    """
    if null_value != null_value:
        return torch.full_like(mean, math.inf), torch.full_like(mean, -math.inf)
    image = (null_value - mean) / std
    arithmetic = torch.finfo(accumulator(dtype)).eps
    slack = 2.0 * arithmetic * (image.abs() + (mean / std).abs()) + 0.5 * torch.finfo(dtype).eps * image.abs()
    return image - null_tolerance / std - slack, image + null_tolerance / std + slack


def kept_entries(
    target: torch.Tensor, mask: torch.Tensor | None, null_value: float | None, null_tolerance: float = 0.0
) -> torch.Tensor:
    """Which entries count, bool of the target's shape: the mask's, less null and NaN targets."""
    kept = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
    if null_value is not None:
        low, high = torch.tensor(null_bounds(null_value, null_tolerance, target.dtype), dtype=torch.float64)
        kept = kept & _outside(target, low, high)
    return kept


def _outside(target: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Which targets lie below or above the bounds, as the kernels compare them; NaN does not."""
    target = target if target.dtype == torch.float64 else target.float()
    return (target < low.to(target.dtype)) | (target > high.to(target.dtype))


def spread(u: torch.Tensor, kept: torch.Tensor, dim: int) -> torch.Tensor:
    """Population standard deviation of the means over `dim`; groups without entries are left out."""
    count = kept.sum(dim)
    present = count > 0
    mean = u.sum(dim) / count.clamp(min=1)
    groups = present.sum(1).clamp(min=1)
    centre = torch.where(present, mean, 0.0).sum(1) / groups
    deviation = torch.where(present, mean - centre[:, None], 0.0)
    return (deviation.square().sum(1) / groups).sqrt()


def _folded(tensor: torch.Tensor) -> torch.Tensor:
    """[B, T, F]: what follows the steps folds into columns."""
    if tensor.dim() == 2:
        return tensor.unsqueeze(2)
    return tensor.flatten(2) if tensor.numel() else tensor.new_empty((*tensor.shape[:2], tensor.shape[2:].numel()))


def _residual(
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    affine: torch.Tensor | None,
    null_value: float | None,
    null_tolerance: float,
    loss: str,
    parameter: float,
) -> _Tensors:
    """The error (0 where it does not count), the target the loss sees, which entries count, and the affine map."""
    bounds = None if affine is None or affine.shape[0] == 5 else affine[5:].unsqueeze(2)
    kept = _folded(kept_entries(target, mask, null_value if bounds is None else None, null_tolerance))
    p, t = _folded(prediction).double(), _folded(target).double()
    # [5, 1 or B, 1, F]
    a = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64, device=p.device).view(5, 1, 1, 1)
    if affine is not None:
        a = affine[:5].double().unsqueeze(2)
    if bounds is not None and null_value is not None:
        kept = kept & _outside(_folded(target), *bounds)
    p, t = p * a[0] + a[1], t * a[2] + a[3]
    if loss == "mape":
        kept = kept & ~(t.abs() < parameter)
    return torch.where(kept, (p - t) * a[4], 0.0), t, kept, a


def pruned_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    weight: torch.Tensor | None,
    affine: torch.Tensor | None,
    horizon: torch.Tensor | None,
    column_weight: torch.Tensor | None,
    null_value: float | None,
    null_tolerance: float,
    loss: int,
    parameter: float,
    spatial: float,
    temporal: float,
    column_means: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted batch loss []; loss [B]; spatial, temporal and score [3, B]; count of [B, T, ...] inputs, [B + 1].

    The last count is the sum of the others. Then, if asked for, the mean of |e| over time of every column [B, F], NaN where it
    has no entries; else [0].
    """
    name = LOSSES[loss]
    error, t, kept, _ = _residual(prediction, target, mask, affine, null_value, null_tolerance, name, parameter)
    u = error.abs()
    if name == "mae":
        term = u
    elif name == "mse":
        term = u.square()
    elif name == "huber":
        term = torch.where(u <= parameter, 0.5 * u.square(), parameter * (u - 0.5 * parameter))
    elif name == "mape":
        term = torch.where(kept, u / t.abs(), 0.0)
    else:
        term = torch.where(error < 0, parameter * u, (1.0 - parameter) * u)
    if horizon is not None:
        term = term * horizon.double()[:, None]
    count = kept.sum((1, 2))
    total = term.sum((1, 2))
    weighted = total
    if column_weight is not None:
        weighted = torch.where(kept, term * column_weight.double()[:, None], 0.0).sum((1, 2))
    if weight is not None:
        weighted = torch.where(count > 0, weighted * weight.double(), 0.0)
    number = count.sum()
    value = weighted.sum() / number.clamp(min=1)
    mean = total / count.clamp(min=1)
    spreads = spread(u, kept, 1), spread(u, kept, 2)
    score = mean
    for factor, term in zip((spatial, temporal), spreads, strict=True):
        # A weight of 0 leaves its term out: 0 * inf would turn an infinite loss into NaN.
        score = score + factor * term if factor > 0.0 else score
    dtype = accumulator(prediction.dtype)
    column_mean = u.sum(1) / kept.sum(1) if column_means else u.new_empty((0,))
    counts = torch.cat([count, number.view(1)])
    return value.to(dtype), mean.to(dtype), torch.stack([*spreads, score]).to(dtype), counts, column_mean.to(dtype)


def pruned_loss_backward(
    grad_value: torch.Tensor | None,
    grad_loss: torch.Tensor | None,
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    weight: torch.Tensor | None,
    affine: torch.Tensor | None,
    horizon: torch.Tensor | None,
    column_weight: torch.Tensor | None,
    null_value: float | None,
    null_tolerance: float,
    loss: int,
    parameter: float,
    count: torch.Tensor,
    target_too: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of grad_value * value + sum_b grad_loss[b] * loss[b]; that of the target is [0] unless asked for."""
    name = LOSSES[loss]
    error, t, kept, a = _residual(prediction, target, mask, affine, null_value, null_tolerance, name, parameter)
    count, number = count[:-1], count[-1]
    scale = torch.zeros_like(count, dtype=torch.float64)[:, None, None]
    if grad_value is not None:
        share = grad_value.double() / number.clamp(min=1)
        share = share if weight is None else share * weight.double()[:, None, None]
        scale = scale + (share if column_weight is None else share * column_weight.double()[:, None])
    if grad_loss is not None:
        scale = scale + (grad_loss.double() / count.clamp(min=1))[:, None, None]
    if horizon is not None:
        scale = scale * horizon.double()[:, None]
    slope = error.sign()
    if name == "mse":
        slope = 2.0 * error
    elif name == "huber":
        slope = error.clamp(-parameter, parameter)
    elif name == "mape":
        slope = error.sign() / t.abs()
    elif name == "quantile":
        slope = torch.where(error < 0, -parameter, (1.0 - parameter) * error.sign())
    to_prediction = torch.where(kept, scale * slope * a[4] * a[0], 0.0)
    out = torch.empty_like(prediction).copy_(to_prediction.view(prediction.shape))
    if not target_too:
        return out, target.new_empty((0,))
    to_target = -slope * a[4]
    if name == "mape":
        to_target = to_target - t.sign() * error.abs() / t.square()
    to_target = torch.where(kept, scale * to_target * a[2], 0.0)
    return out, torch.empty_like(target).copy_(to_target.view(target.shape))
