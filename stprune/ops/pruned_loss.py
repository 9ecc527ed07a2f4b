"""pruned_loss: the op behind PrunedLoss, residual_stats and score; schema, autograd, and the arguments they share."""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any

import torch

from stprune.ops import _check
from stprune.ops._registry import define, define_autograd, define_cuda
from stprune.reference import pruned_loss as reference

LOSSES = ("mae", "mse", "huber", "mape", "quantile")
"""The losses that the fused op knows."""

Five = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

_OPTIONS = (
    "Tensor? mask, Tensor? weight, Tensor? affine, Tensor? horizon, Tensor? column_weight, float? null_value, str loss, "
    "float parameter"
)


def _fake(
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    weight: torch.Tensor | None,
    affine: torch.Tensor | None,
    horizon: torch.Tensor | None,
    column_weight: torch.Tensor | None,
    null_value: float | None,
    loss: str,
    parameter: float,
    spatial: float,
    temporal: float,
    columns: bool,
) -> Five:
    samples = prediction.shape[0]
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    return (
        prediction.new_empty((), dtype=dtype),
        prediction.new_empty((samples,), dtype=dtype),
        prediction.new_empty((3, samples), dtype=dtype),
        prediction.new_empty((samples,), dtype=torch.int64),
        prediction.new_empty((samples, prediction.shape[2:].numel()) if columns else (0,), dtype=dtype),
    )


def _backward_fake(
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
    loss: str,
    parameter: float,
    count: torch.Tensor,
    target_too: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(prediction), torch.empty_like(target) if target_too else target.new_empty((0,))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Five) -> None:
    prediction, target, mask, weight, affine, horizon, column_weight, null_value, loss, parameter, _, _, _ = inputs
    _, _, rest, count, column_mean = output
    ctx.mark_non_differentiable(rest, count, column_mean)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(prediction, target, mask, weight, affine, horizon, column_weight, count)
    ctx.options = (null_value, loss, parameter)


def _backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    *tensors, count = ctx.saved_tensors
    grad_value, grad_loss = grads[:2]
    nothing: tuple[None, ...] = (None,) * 13
    if grad_value is None and grad_loss is None:
        return nothing
    to_prediction, to_target = ctx.needs_input_grad[:2]
    grad, grad_target = torch.ops.stprune.pruned_loss_backward.default(
        grad_value, None if grad_loss is None else grad_loss.contiguous(), *tensors, *ctx.options, count, to_target
    )
    return grad if to_prediction else None, grad_target if to_target else None, *nothing[2:]


def _backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _double_backward(ctx: Any, *grads: torch.Tensor) -> None:
    raise RuntimeError(
        "pruned_loss: the loss can be differentiated once; a second derivative (create_graph=True followed by "
        "another backward) is not supported"
    )


@functools.cache
def _kernels() -> Any:
    """The Triton kernels' launchers, imported at the first call; None where triton is not installed."""
    try:
        return importlib.import_module("stprune.kernels.pruned_loss")
    except ImportError:
        return None


def _cuda(*arguments: Any) -> Five:
    kernels = _kernels()
    result: Five = reference.pruned_loss(*arguments) if kernels is None else kernels.pruned_loss(*arguments)
    return result


def _backward_cuda(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    kernels = _kernels()
    run = reference.pruned_loss_backward if kernels is None else kernels.pruned_loss_backward
    result: tuple[torch.Tensor, torch.Tensor] = run(*arguments)
    return result


define(
    f"pruned_loss(Tensor prediction, Tensor target, {_OPTIONS}, float spatial, float temporal, bool columns)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference.pruned_loss,
    _fake,
)
define_autograd("pruned_loss", _backward, _setup_context)
define(
    f"pruned_loss_backward(Tensor? grad_value, Tensor? grad_loss, Tensor prediction, Tensor target, {_OPTIONS}, "
    "Tensor count, bool target_too) -> (Tensor, Tensor)",
    reference.pruned_loss_backward,
    _backward_fake,
)
define_autograd("pruned_loss_backward", _double_backward, _backward_setup_context)
define_cuda("pruned_loss", _cuda)
define_cuda("pruned_loss_backward", _backward_cuda)


def _find_short_way() -> tuple[Any, Any] | None:
    """What the short way into the kernel needs of torch: undocumented names, which a release may drop. None without them."""
    names = "_AutoDispatchBelowAutograd", "_are_functorch_transforms_active"
    found = [getattr(torch._C, name, None) for name in names]
    return None if None in found else (found[0], found[1])


_SHORT_WAY = _find_short_way()


def functorch_is_active() -> bool:
    """Whether a functorch transform is at work, or a torch does not say so."""
    return _SHORT_WAY is None or bool(_SHORT_WAY[1]())


class _Fused(torch.autograd.Function):
    """The same gradient as the registered one, at a fifth of its cost per call (40 us on the CPU)."""

    @staticmethod
    def forward(ctx: Any, prediction: torch.Tensor, target: torch.Tensor, others: tuple[Any, ...]) -> Five:
        # One tuple: torch looks into every argument of its own.
        assert _SHORT_WAY is not None
        with _SHORT_WAY[0]():
            output: Five = _OP(prediction, target, *others)
        _setup_context(ctx, (prediction, target, *others), output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        assert _SHORT_WAY is not None
        if torch.is_grad_enabled():  # create_graph: the op's own autograd refuses the second derivative
            return _backward(ctx, *grads)[:3]
        with _SHORT_WAY[0]():
            return _backward(ctx, *grads)[:3]


_OP = torch.ops.stprune.pruned_loss.default


def pruned_loss(*arguments: Any) -> Five:
    """The op, by the shortest way to its kernel.

    Args:
        arguments: those of the schema; prediction and target [B, T, ...], whose dimensions after the second fold into F
            columns; weight [B] and column_weight [B, F] multiply the samples' and the columns' shares of the batch loss and of
            its gradient, and nothing else; columns asks for the last result. Nothing is modified.

    Returns:
        The weighted batch loss []; loss [B]; spatial, temporal and score [3, B]; count [B] int64; mean of |e| over time of
        every column [B, F], NaN where it has no entries ([0] if not asked for).

    Raises:
        RuntimeError: in a backward, a second derivative.

    Source:
        Eq. 1-4, 13.
    """
    if torch.compiler.is_compiling() or _SHORT_WAY is None or _SHORT_WAY[1]():
        result: Five = _OP(*arguments)
        return result
    prediction, target, *others = arguments
    if torch.is_grad_enabled() and (prediction.requires_grad or target.requires_grad):
        result = _Fused.apply(prediction, target, tuple(others))  # type: ignore[no-untyped-call]
        return result
    with _SHORT_WAY[0]():
        result = _OP(*arguments)
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
    rest = [d for d in range(len(dims)) if d not in order]
    view = tensor.permute(*order, *rest)
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


def checked_loss(op: str, loss: Any, huber_delta: Any, mape_floor: Any, quantile: Any) -> tuple[str, float]:
    """The loss's name and its parameter.

    Raises:
        TypeError: a parameter is no number.
        ValueError: the loss is unknown or a parameter lies outside its range.
    """
    loss = _check.choice(op, "loss", loss, LOSSES)
    huber_delta = _check.real(op, "huber_delta", huber_delta, 0.0, math.inf, low_open=True)
    mape_floor = _check.real(op, "mape_floor", mape_floor, 0.0, math.inf, low_open=True)
    quantile = _check.real(op, "quantile", quantile, 0.0, 1.0, low_open=True)
    if quantile == 1.0:
        raise ValueError(f"{op}: quantile must lie in (0, 1), got 1")
    return loss, parameter_of(loss, huber_delta=huber_delta, mape_floor=mape_floor, quantile=quantile)
