"""The loss of every (window, node) pair."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stprune.reference.pruned_loss import kept_entries

_OP = "headroom"

Loss = Callable[[Tensor, Tensor], Tensor]


def _mae(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).abs()


def _mse(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square()


def _huber(prediction: Tensor, target: Tensor) -> Tensor:
    return F.huber_loss(prediction, target, reduction="none")


LOSSES: dict[str, Loss] = {"mae": _mae, "mse": _mse, "huber": _huber}


def resolve(loss: str | Loss) -> Loss:
    """The function of a loss's name, or the caller's own.

    Raises:
        ValueError: the name is not known.
        TypeError: neither a name nor callable.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"{_OP}: loss must be one of {', '.join(LOSSES)} or a function, got {loss!r}")
        return LOSSES[loss]
    if not callable(loss):
        raise TypeError(f"{_OP}: loss must be a name or a function, got {type(loss).__name__}")
    return loss


def entries(
    prediction: Tensor, target: Tensor, loss: Loss, null_value: float | None, null_tolerance: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Loss of every entry, 0 where the target is missing, and where it is not.

    Args:
        prediction: [B, T, N, C] float.
        target: the same shape; NaN where missing.
        loss: returns the losses of the entries, unreduced.
        null_value, null_tolerance: as in `stprune.residual_stats`.

    Returns:
        [B, T, N, C] float, and bool of the same shape.

    Raises:
        ValueError: shapes differ, or the loss reduces.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"{_OP}: model must return a forecast of the shape of y {list(target.shape)}, got {list(prediction.shape)}"
        )
    valid = kept_entries(target, torch.isfinite(target), null_value, null_tolerance)
    losses = loss(prediction, torch.where(valid, target, 0.0))
    if losses.shape != prediction.shape:
        raise ValueError(
            f"{_OP}: loss must return the loss of every entry, unreduced {list(prediction.shape)}, got {list(losses.shape)}"
        )
    return torch.where(valid, losses, 0.0), valid


def pair_means(losses: Tensor) -> Tensor:
    """[B, N] share of every pair in the loss, from [B, T, N, C]: a fixed denominator, as in eq. 13."""
    return losses.mean(dim=(1, 3))


def batch_mean(losses: Tensor, valid: Tensor) -> Tensor:
    """The plain masked loss, a scalar."""
    return losses.sum() / valid.sum().clamp_min(1)
