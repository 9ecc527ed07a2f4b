"""Reference of pruned_step: weights, loss and table update one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stprune.reference.plan_lookup import plan_lookup
from stprune.reference.pruned_loss import pruned_loss
from stprune.reference.table_update import table_update


def pruned_step(
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    affine: torch.Tensor | None,
    horizon: torch.Tensor | None,
    column_weight: torch.Tensor | None,
    index: torch.Tensor,
    plan_ids: torch.Tensor | None,
    plan_weights: torch.Tensor,
    mean_weight: torch.Tensor | None,
    num_samples: int,
    scores: torch.Tensor | None,
    marks: torch.Tensor | None,
    variance: torch.Tensor | None,
    count: torch.Tensor,
    beta: float,
    null_value: float | None,
    null_tolerance: float,
    loss: int,
    parameter: float,
    spatial: float,
    temporal: float,
    column_means: bool,
    *,
    loss_op: Callable[..., Any] = pruned_loss,
    update_op: Callable[..., Any] = table_update,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted batch loss [], the samples' weights [B], counts [B + 1] and the columns' means; the table is updated."""
    check_batch(prediction, target, mask, index)
    of_plan = plan_lookup(index, plan_ids, plan_weights, mean_weight, num_samples, op="pruned_step")
    weight = of_plan.double() if prediction.dtype == torch.float64 else of_plan
    options = (null_value, null_tolerance, loss, parameter, spatial, temporal, column_means)
    value, _, statistics, entries, column_mean = loss_op(
        prediction, target, mask, weight, affine, horizon, column_weight, *options
    )
    update_op(scores, marks, variance, count, index, statistics[2].float(), entries[:-1], of_plan, beta, True)
    return value, weight, entries, column_mean


def check_batch(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, index: torch.Tensor) -> None:
    """Raise a RuntimeError where shapes or dtypes do not fit each other."""
    halves = torch.bfloat16, torch.float16
    autocast = target.dtype == torch.float32 and prediction.dtype in halves
    fits = prediction.shape == target.shape and (autocast or prediction.dtype == target.dtype)
    fits = fits and (mask is None or (mask.dtype == torch.bool and mask.shape == target.shape))
    if not (fits and prediction.dim() >= 2 and index.dtype == torch.int64 and index.shape == prediction.shape[:1]):
        raise RuntimeError("pruned_step: prediction, target, mask and index must fit each other")
