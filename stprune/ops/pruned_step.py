"""pruned_step: an eager training step of PrunedLoss in one op: weights of the samples, loss, and scores into the table."""

from __future__ import annotations

from typing import Any

import torch

from stprune.ops._registry import define
from stprune.reference import pruned_step as reference


def _fake(
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    affine: torch.Tensor | None,
    horizon: torch.Tensor | None,
    index: torch.Tensor,
    *rest: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    return (
        prediction.new_empty((), dtype=dtype),
        prediction.new_empty(index.shape, dtype=dtype),
        prediction.new_empty(index.shape, dtype=torch.int64),
    )


def _backward_fake(
    grad_value: torch.Tensor, prediction: torch.Tensor, target: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(prediction), torch.empty_like(target) if rest[-1] else target.new_empty((0,))


define(
    "pruned_step(Tensor prediction, Tensor target, Tensor? mask, Tensor? affine, Tensor? horizon, Tensor index, "
    "Tensor plan_ids, Tensor plan_weights, bool full, Tensor? mean_weight, "
    "Tensor(a!) scores, Tensor(b!) marks, Tensor(c!)? variance, Tensor(d!) count, float beta, "
    "float? null_value, str loss, float parameter, float spatial, float temporal) -> (Tensor, Tensor, Tensor)",
    reference.pruned_step,
    _fake,
)
# Apart from pruned_loss_backward, whose own gradient, the refusal of a second derivative, makes a call expensive.
define(
    "pruned_step_backward(Tensor grad_value, Tensor prediction, Tensor target, Tensor? mask, Tensor? affine, "
    "Tensor? horizon, Tensor weight, Tensor count, float? null_value, str loss, float parameter, bool target_too)"
    " -> (Tensor, Tensor)",
    reference.pruned_step_backward,
    _backward_fake,
)

_OP = torch.ops.stprune.pruned_step.default
_BACKWARD = torch.ops.stprune.pruned_step_backward.default


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prediction: torch.Tensor, target: torch.Tensor, rest: tuple[Any, ...]) -> torch.Tensor:
        # One tuple: torch looks into every argument of its own.
        value, weight, count = _OP(prediction, target, *rest)
        # What nobody else can change needs no watch.
        ctx.save_for_backward(prediction, target, *rest[:3])
        ctx.own = weight, count, *rest[13:16]
        result: torch.Tensor = value
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        to_prediction, to_target, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph: this op's autograd refuses the second derivative
            prediction, target, mask, affine, horizon = ctx.saved_tensors
            weight, count, *options = ctx.own
            grad_prediction, grad_target = torch.ops.stprune.pruned_loss_backward.default(
                grad, None, prediction, target, mask, weight, affine, horizon, None, *options, count, to_target
            )
        else:
            grad_prediction, grad_target = _BACKWARD(grad, *ctx.saved_tensors, *ctx.own, to_target)
        return grad_prediction if to_prediction else None, grad_target if to_target else None, None


# Without the wrapper that looks for functorch's tensors: callers have done so, and it costs more than the call.
_apply = super(torch.autograd.Function, _Step).apply


def pruned_step(prediction: torch.Tensor, target: torch.Tensor, *rest: Any) -> torch.Tensor:
    """The weighted batch loss, differentiable once; the table takes the scores of the batch in.

    Args:
        prediction, target: [B, T, ...] on the host, at least one of which asks for its gradient.
        rest: the schema's other arguments, in order: mask, affine and horizon as in `pruned_loss`; index [B] int64
            contiguous; ids [K], weights [K], full and mean_weight of the plan as in `plan_lookup`; scores, marks, variance,
            count and beta of the table as in `table_update`, which are modified; null_value, loss, parameter, spatial and
            temporal as in `pruned_loss`.

    Returns:
        [] float64 for float64 inputs, else float32.

    Raises:
        RuntimeError: arguments do not fit, or an id is not in the plan or the table; nothing was changed then.

    Source:
        Eq. 1-5, 9, 10, 13.
    """
    result: torch.Tensor = _apply(prediction, target, rest)  # type: ignore[no-untyped-call]
    return result
