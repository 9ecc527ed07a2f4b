"""Reference of pruned_step: the references of the ops it stands for, one after another."""

from __future__ import annotations

import torch

from stprune.reference.plan_lookup import plan_lookup
from stprune.reference.pruned_loss import pruned_loss, pruned_loss_backward
from stprune.reference.table_update import table_update


def pruned_step(
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    affine: torch.Tensor | None,
    horizon: torch.Tensor | None,
    index: torch.Tensor,
    plan_ids: torch.Tensor,
    plan_weights: torch.Tensor,
    full: bool,
    mean_weight: torch.Tensor | None,
    scores: torch.Tensor,
    marks: torch.Tensor,
    variance: torch.Tensor | None,
    count: torch.Tensor,
    beta: float,
    null_value: float | None,
    loss: str,
    parameter: float,
    spatial: float,
    temporal: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted batch loss [], the samples' weights [B] and counts [B]; the table takes the scores in."""
    halves = torch.bfloat16, torch.float16
    autocast = target.dtype == torch.float32 and prediction.dtype in halves
    fits = prediction.shape == target.shape and (autocast or prediction.dtype == target.dtype)
    fits = fits and (mask is None or (mask.dtype == torch.bool and mask.shape == target.shape))
    if not (fits and prediction.dim() >= 2 and index.dtype == torch.int64 and index.shape == prediction.shape[:1]):
        raise RuntimeError("pruned_step: prediction, target, mask and index must fit each other")
    weight = plan_lookup(index, plan_ids, plan_weights, full, mean_weight)
    weight = weight.double() if prediction.dtype == torch.float64 else weight
    options = (mask, weight, affine, horizon, None, null_value, loss, parameter, spatial, temporal, False)
    value, _, rest, entries, _ = pruned_loss(prediction, target, *options)
    table_update(scores, marks, variance, count, index, rest[2].float(), beta, True)
    return value, weight, entries


def pruned_step_backward(
    grad_value: torch.Tensor,
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    affine: torch.Tensor | None,
    horizon: torch.Tensor | None,
    weight: torch.Tensor,
    count: torch.Tensor,
    null_value: float | None,
    loss: str,
    parameter: float,
    target_too: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of prediction and, if asked for, of target (else [0])."""
    options = (mask, weight, affine, horizon, None, null_value, loss, parameter, count, target_too)
    return pruned_loss_backward(grad_value, None, prediction, target, *options)
