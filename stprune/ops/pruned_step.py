"""pruned_step: a step of training in one op: weights of the samples, loss, and scores into the table."""

from __future__ import annotations

import functools
from typing import Any

import torch

from stprune.ops import table_update  # noqa: F401  to be registered
from stprune.ops._registry import by_triton, define, define_cuda
from stprune.ops.pruned_loss import fake, gradients
from stprune.reference import pruned_step as reference

Two = tuple[torch.Tensor, torch.Tensor | None]


def _fake(prediction: torch.Tensor, target: torch.Tensor, *others: Any) -> tuple[torch.Tensor, ...]:
    value, weight, _, count, column_mean = fake(prediction, target, *others)
    return value, weight, count, column_mean


define(
    "pruned_step(Tensor prediction, Tensor target, Tensor? mask, Tensor? affine, Tensor? horizon, Tensor? column_weight, "
    "Tensor index, Tensor? plan_ids, Tensor plan_weights, Tensor? mean_weight, int num_samples, "
    "Tensor(a!)? scores, Tensor(b!)? marks, Tensor(c!)? variance, Tensor(d!) count, float beta, float? null_value, "
    "float null_tolerance, int loss, float parameter, float spatial, float temporal, bool column_means)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference.pruned_step,
    _fake,
)
composed = functools.partial(
    reference.pruned_step, loss_op=torch.ops.stprune.pruned_loss.default, update_op=torch.ops.stprune.table_update.default
)
"""The parts one after another, each by its own kernel."""
_by_triton = by_triton("pruned_step", composed, file="pruned_loss")


def _cuda(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, *others: Any) -> tuple[Any, ...]:
    reference.check_batch(prediction, target, mask, others[3])
    run = _by_triton if prediction.numel() else composed
    results: tuple[Any, ...] = run(prediction, target, mask, *others)
    return results


define_cuda("pruned_step", _cuda)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prediction: torch.Tensor, target: torch.Tensor, others: tuple[Any, ...]) -> Two:
        # One tuple: torch looks into every argument of its own.
        value, weight, count, column_mean = torch.ops.stprune.pruned_step.default(prediction, target, *others)
        ctx.set_materialize_grads(False)
        mask, affine, horizon, column_weight = others[:4]
        ctx.save_for_backward(prediction, target, mask, weight, affine, horizon, column_weight, count)
        ctx.options = others[14:18]
        if not others[-1]:
            return value, None
        ctx.mark_non_differentiable(column_mean)
        return value, column_mean

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        return (None, None, None) if grads[0] is None else (*gradients(ctx, grads[0], None), None)


def pruned_step(prediction: torch.Tensor, target: torch.Tensor, *others: Any) -> Two:
    """The weighted batch loss, differentiable once; the table takes the scores of the batch in.

    A sample that was trained on before in this epoch keeps its score: the op may run twice on a batch.

    Args:
        prediction, target: [B, T, ...]. Not modified.
        others: the schema's other arguments, in order: mask, affine, horizon and column_weight as in `pruned_loss`; index
            [B] int64 contiguous; plan_ids [K] int64 ascending, or None where all of num_samples are kept; plan_weights, one
            for each kept id or one for all; mean_weight, which they are divided by, or None; num_samples; scores, marks,
            variance, count and beta of the table as in `table_update`, which are modified; null_value, null_tolerance,
            loss, parameter, spatial, temporal and column_means as in `pruned_loss`.

    Returns:
        [] float64 for float64 inputs, else float32; and the columns' means as `pruned_loss` gives them, None if not asked for.

    Raises:
        RuntimeError: arguments do not fit, or an id is not in the plan; nothing was changed. On a GPU, where asking would wait
            for it, the loss is NaN, and wrong ids alone are left out and noted, as in `table_update`.

    Source:
        Eq. 1-5, 9, 10, 13.
    """
    result: Two = _Step.apply(prediction, target, others)  # type: ignore[no-untyped-call]
    return result
