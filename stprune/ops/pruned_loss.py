"""pruned_loss: the op behind evaluation, residual_stats and score; its gradient, and the arguments they share."""

from __future__ import annotations

import math
from typing import Any

import torch

from stprune.ops import _check
from stprune.ops._registry import by_triton, define, define_cuda
from stprune.reference import pruned_loss as reference
from stprune.reference.precision import accumulator

LOSSES = reference.LOSSES
"""The losses that the fused op knows; in a schema each is the number of its place."""

Five = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

_OPTIONS = (
    "Tensor? mask, Tensor? weight, Tensor? affine, Tensor? horizon, Tensor? column_weight, float? null_value, "
    "float null_tolerance, int loss, float parameter"
)


def fake(prediction: torch.Tensor, target: torch.Tensor, *others: Any) -> Five:
    """What `pruned_loss` returns, without values; `column_means` is the last argument."""
    samples, column_means = prediction.shape[0], others[-1]
    dtype = accumulator(prediction.dtype)
    return (
        prediction.new_empty((), dtype=dtype),
        prediction.new_empty((samples,), dtype=dtype),
        prediction.new_empty((3, samples), dtype=dtype),
        prediction.new_empty((samples + 1,), dtype=torch.int64),
        prediction.new_empty((samples, prediction.shape[2:].numel()) if column_means else (0,), dtype=dtype),
    )


def _backward_fake(
    grad_value: torch.Tensor | None,
    grad_loss: torch.Tensor | None,
    prediction: torch.Tensor,
    target: torch.Tensor,
    *others: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(prediction), torch.empty_like(target) if others[-1] else target.new_empty((0,))


define(
    f"pruned_loss(Tensor prediction, Tensor target, {_OPTIONS}, float spatial, float temporal, bool column_means)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference.pruned_loss,
    fake,
)
define(
    f"pruned_loss_backward(Tensor? grad_value, Tensor? grad_loss, Tensor prediction, Tensor target, {_OPTIONS}, "
    "Tensor count, bool target_too) -> (Tensor, Tensor)",
    reference.pruned_loss_backward,
    _backward_fake,
)
define_cuda("pruned_loss", by_triton("pruned_loss", reference.pruned_loss))
define_cuda("pruned_loss_backward", by_triton("pruned_loss_backward", reference.pruned_loss_backward))


class _Once(torch.autograd.Function):
    """The gradient as it is, whose own gradient is refused."""

    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, *sources: torch.Tensor | None) -> torch.Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        raise RuntimeError(
            "pruned_loss: the loss can be differentiated once; a second derivative (create_graph=True followed by "
            "another backward) is not supported"
        )


def gradients(
    ctx: Any, grad_value: torch.Tensor | None, grad_loss: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of prediction and target, where they are asked for.

    Args:
        ctx: of an autograd function whose first inputs are prediction and target; it saved these, mask, weight, affine,
            horizon, column_weight and count, and has null_value, null_tolerance, loss and parameter as `options`.
        grad_value: [] of the batch loss, or None.
        grad_loss: [B] of the samples' losses, or None.
    """
    *tensors, count = ctx.saved_tensors
    to_prediction, to_target = ctx.needs_input_grad[:2]
    found = torch.ops.stprune.pruned_loss_backward.default(
        grad_value, None if grad_loss is None else grad_loss.contiguous(), *tensors, *ctx.options, count, to_target
    )
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        found = [_Once.apply(gradient, *tensors[:2], grad_value, grad_loss) for gradient in found]  # type: ignore[no-untyped-call]
    return found[0] if to_prediction else None, found[1] if to_target else None


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prediction: torch.Tensor, target: torch.Tensor, others: tuple[Any, ...]) -> Five:
        # One tuple: torch looks into every argument of its own.
        output: Five = torch.ops.stprune.pruned_loss.default(prediction, target, *others)
        _, _, statistics, count, column_mean = output
        ctx.mark_non_differentiable(statistics, count, column_mean)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(prediction, target, *others[:5], count)
        ctx.options = others[5:9]
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        nothing = grads[0] is None and grads[1] is None
        return (None, None, None) if nothing else (*gradients(ctx, *grads[:2]), None)


def pruned_loss(prediction: torch.Tensor, target: torch.Tensor, *others: Any) -> Five:
    """The op with its gradient.

    Args:
        prediction, target: [B, T, ...], whose dimensions after the second fold into F columns. Not modified.
        others: the schema's other arguments, in order: mask, of the target's shape; weight [B] and column_weight [B, F],
            which multiply the samples' and the columns' shares of the batch loss and of its gradient, and nothing else;
            affine [5 or 7, 1 or B, F] and horizon [T], as `stprune.scaling` makes them; null_value and null_tolerance, which
            say what targets mean missing (an affine of 7 rows says it for each column instead, unless null_value is None);
            loss, a place in `LOSSES`, and its parameter; spatial and temporal of eq. 4; column_means, whether the last
            result is asked for.

    Returns:
        The weighted batch loss []; loss [B]; spatial, temporal and score [3, B]; count [B + 1] int64, the last their sum;
        mean of |e| over time of every column [B, F], NaN where it has no entries ([0] if not asked for).

    Raises:
        RuntimeError: in a backward, a second derivative.

    Source:
        Eq. 1-4, 13.
    """
    if torch.is_grad_enabled() and (prediction.requires_grad or target.requires_grad):
        result: Five = _Loss.apply(prediction, target, others)  # type: ignore[no-untyped-call]
    else:
        result = torch.ops.stprune.pruned_loss.default(prediction, target, *others)
    return result


def checked_dims(op: str, dims: Any) -> str | None:
    """`dims` if it names every dimension once: B, and any of T, N, C, or H and W instead of N.

    Raises:
        TypeError: `dims` is no string.
        ValueError: a letter is unknown or repeated, B is missing, or H and W do not stand for the nodes.
    """
    if dims is None:
        return None
    if not isinstance(dims, str):
        raise TypeError(f"{op}: dims must be a string such as 'BTNC', got {dims!r}")
    grid = {"H", "W"} & set(dims)
    if not set(dims) <= set("BTNCHW") or len(set(dims)) != len(dims) or "B" not in dims or (grid and "N" in dims):
        raise ValueError(f"{op}: dims must name each dimension once, of B, T, N, C or B, T, C, H, W, got {dims!r}")
    return dims


def arranged(tensor: torch.Tensor, dims: str | None) -> torch.Tensor:
    """A view [B, T, nodes and channels ...]; without dims the tensor is that already. Nothing is copied."""
    if dims is None or dims.startswith("BT"):
        return tensor
    order = [dims.index("B")] + ([dims.index("T")] if "T" in dims else [])
    folded = [d for d in range(len(dims)) if d not in order]
    view = tensor.permute(*order, *folded)
    return view if "T" in dims else view.unsqueeze(1)


def channels_of(shape: torch.Size, dims: str | None) -> tuple[list[int], list[bool]]:
    """Sizes of the dimensions that fold into columns, and which of them count nodes, as `arranged` leaves them."""
    if dims is None:
        sizes = list(shape[2:])
        return sizes, [True, *[False] * (len(sizes) - 1)] if sizes else []
    letters = [letter for letter in dims if letter not in "BT"]
    return [shape[dims.index(letter)] for letter in letters], [letter in "NHW" for letter in letters]


def parameter_of(loss: str, *, huber_delta: float, mape_floor: float, quantile: float) -> float:
    """The one number the op's loss depends on."""
    return {"huber": huber_delta, "mape": mape_floor, "quantile": quantile}.get(loss, 1.0)


def checked_loss(op: str, loss: Any, huber_delta: Any, mape_floor: Any, quantile: Any, *, hint: str = "") -> tuple[int, float]:
    """The loss's place in `LOSSES` and its parameter; `hint` ends the message about an unknown loss.

    Raises:
        TypeError: a parameter is no number.
        ValueError: the loss is unknown or a parameter lies outside its range.
    """
    loss = _check.choice(op, "loss", loss, LOSSES, hint=hint)
    huber_delta = _check.real(op, "huber_delta", huber_delta, 0.0, math.inf, low_open=True)
    mape_floor = _check.real(op, "mape_floor", mape_floor, 0.0, math.inf, low_open=True)
    quantile = _check.real(op, "quantile", quantile, 0.0, 1.0, low_open=True)
    if quantile == 1.0:
        raise ValueError(f"{op}: quantile must lie in (0, 1), got 1")
    return LOSSES.index(loss), parameter_of(loss, huber_delta=huber_delta, mape_floor=mape_floor, quantile=quantile)
