"""residual_stats and score: how large the error of every sample is, and how unevenly it is spread."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import torch

from stprune.ops import _check
from stprune.ops._registry import define, define_autograd
from stprune.reference import residual_stats as reference

LOSSES = ("mae", "mse", "huber")
"""The losses that `residual_stats` and `score` know."""


class ResidualStats(NamedTuple):
    """What `residual_stats` measures, one value per sample.

    Attributes:
        loss: [B] float32 (float64 for float64 input), mean loss over the entries that count.
        spatial: [B], spread of the nodes' mean absolute errors (eq. 2), in the target's unit.
        temporal: [B], spread of the steps' mean absolute errors (eq. 3), in the target's unit.
        count: [B] int64, entries that count.
    """

    loss: torch.Tensor
    spatial: torch.Tensor
    temporal: torch.Tensor
    count: torch.Tensor  # type: ignore[assignment]  # shadows tuple.count, as the contract names it


_Four = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _fake(
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    null_value: float | None,
    loss: str,
    huber_delta: float,
) -> _Four:
    samples = prediction.shape[0]
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    values = [prediction.new_empty((samples,), dtype=dtype) for _ in range(3)]
    return values[0], values[1], values[2], prediction.new_empty((samples,), dtype=torch.int64)


def _backward_fake(
    grad_loss: torch.Tensor,
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    null_value: float | None,
    loss: str,
    huber_delta: float,
    count: torch.Tensor,
) -> torch.Tensor:
    return torch.empty_like(prediction, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Four) -> None:
    prediction, target, mask, null_value, loss, huber_delta = inputs
    _, spatial, temporal, count = output
    ctx.mark_non_differentiable(spatial, temporal, count)
    ctx.save_for_backward(prediction, target, mask, count)
    ctx.options = (null_value, loss, huber_delta)


def _backward(
    ctx: Any, grad_loss: torch.Tensor, *unused: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None, None]:
    prediction, target, mask, count = ctx.saved_tensors
    grad = torch.ops.stprune.residual_stats_backward(grad_loss.contiguous(), prediction, target, mask, *ctx.options, count)
    to_prediction, to_target = ctx.needs_input_grad[:2]
    return grad if to_prediction else None, -grad if to_target else None, None, None, None, None


def _backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    pass


def _double_backward(ctx: Any, *grads: torch.Tensor) -> None:
    raise RuntimeError(
        "residual_stats: the loss can be differentiated once; a second derivative (create_graph=True followed by "
        "another backward) is not supported"
    )


define(
    "residual_stats(Tensor prediction, Tensor target, Tensor? mask, float? null_value, str loss, float huber_delta)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference.residual_stats,
    _fake,
)
define_autograd("residual_stats", _backward, _setup_context)
define(
    "residual_stats_backward(Tensor grad_loss, Tensor prediction, Tensor target, Tensor? mask, float? null_value, "
    "str loss, float huber_delta, Tensor count) -> Tensor",
    reference.residual_stats_backward,
    _backward_fake,
)
define_autograd("residual_stats_backward", _double_backward, _backward_setup_context)


def _as_grid(tensor: torch.Tensor) -> torch.Tensor:
    # Nodes and channels fold into one dimension. Sizes are spelled out: -1 is ambiguous for an empty tensor.
    shape = tensor.shape
    return tensor.reshape(shape[0], shape[1], math.prod(shape[2:])).contiguous()


def _number(op: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    return float(value)


def _measure(op: str, prediction: Any, target: Any, mask: Any, null_value: Any, loss: Any, huber_delta: Any) -> ResidualStats:
    prediction = _check.floating(op, "prediction", prediction)
    target = _check.floating(op, "target", target)
    if prediction.dim() < 2:
        raise ValueError(f"{op}: prediction must have at least two dimensions [B, T, ...], got shape {tuple(prediction.shape)}")
    if mask is not None and _check.tensor(op, "mask", mask).dtype != torch.bool:
        raise TypeError(f"{op}: mask must be bool, got {mask.dtype}")
    for name, tensor in (("target", target), ("mask", mask)):
        if tensor is None:
            continue
        if tensor.shape != prediction.shape:
            raise ValueError(
                f"{op}: {name} must have the prediction's shape {tuple(prediction.shape)}, got {tuple(tensor.shape)}"
            )
        if tensor.device != prediction.device:
            raise RuntimeError(f"{op}: {name} must be on the prediction's device {prediction.device}, got {tensor.device}")
    if target.dtype != prediction.dtype:
        raise TypeError(f"{op}: target must have the prediction's dtype {prediction.dtype}, got {target.dtype}")
    loss = _check.choice(op, "loss", loss, LOSSES)
    if null_value is not None:
        null_value = _number(op, "null_value", null_value)
    huber_delta = _number(op, "huber_delta", huber_delta)
    if not huber_delta > 0.0:
        raise ValueError(f"{op}: huber_delta must be positive, got {huber_delta:g}")
    stats = torch.ops.stprune.residual_stats(
        _as_grid(prediction),
        _as_grid(target),
        None if mask is None else _as_grid(mask),
        null_value,
        loss,
        huber_delta,
    )
    return ResidualStats(*stats)


def residual_stats(
    prediction: torch.Tensor,
    target: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    null_value: float | None = None,
    loss: str = "mae",
    huber_delta: float = 1.0,
) -> ResidualStats:
    """Loss, spatial and temporal heterogeneity of the error, and number of entries, of every sample.

    With u = |prediction - target| and all means over the entries that count: `spatial` is the population standard
    deviation over nodes of the nodes' means over time, `temporal` that over steps of the steps' means over nodes.
    Channels fold into nodes. Nodes and steps without entries are left out, and a sample without entries gives 0, 0,
    0 and count 0. Entries that are removed reach nothing, even where they hold NaN or infinity. Bits do not depend
    on the number of threads.

    Args:
        prediction: [B, T, N, C], [B, T, N] or any [B, T, ...] float32, float64, bfloat16 or float16; not modified.
        target: shape, dtype and device of `prediction`; not modified.
        mask: the prediction's shape, bool, True where an entry counts; not modified. None: all count.
        null_value: removes entries whose target equals it (after rounding it to the target's dtype) or is NaN; NaN
            removes only NaN; None removes nothing, and a NaN then makes its own sample NaN.
        loss: "mae", "mse" or "huber": what `loss` is the mean of. The heterogeneities are always those of u.
        huber_delta: where the Huber loss becomes linear, positive, in the target's unit.

    Returns:
        `ResidualStats` of four [B] tensors in the order of the batch: loss, spatial and temporal float32 (float64 for
        float64 input, sums never narrower than float32) and count int64. Gradients flow through `loss` alone, to
        prediction and target, once.

    Raises:
        TypeError: no floating tensors, different dtypes, a mask that is not bool, or an option that is no number.
        ValueError: fewer than two dimensions, different shapes, an unknown loss, or huber_delta not positive.
        RuntimeError: tensors on different devices; or, in a backward, a second derivative.

    Example:
        >>> import torch, stprune
        >>> target = torch.zeros(1, 2, 2)
        >>> stats = stprune.residual_stats(torch.tensor([[[1.0, 3.0], [1.0, 3.0]]]), target)
        >>> stats.loss.item(), stats.spatial.item(), stats.temporal.item(), stats.count.item()
        (2.0, 1.0, 0.0, 4)

    Source:
        Eq. 1-3 of the method (our definition). On a complete grid mean(u^2) is loss^2 (MAE) + spatial^2 + temporal^2 +
        the interaction, the two-way analysis of variance.
    """
    return _measure("residual_stats", prediction, target, mask, null_value, loss, huber_delta)


def score(
    prediction: torch.Tensor,
    target: torch.Tensor,
    *,
    spatial: float = 0.5,
    temporal: float = 0.5,
    mask: torch.Tensor | None = None,
    null_value: float | None = None,
    loss: str = "mae",
) -> torch.Tensor:
    """Score of every sample: its loss plus the heterogeneity of its error over nodes and over time.

    Args:
        prediction: [B, T, N, C], [B, T, N] or any [B, T, ...] float32, float64, bfloat16 or float16; not modified.
        target: shape, dtype and device of `prediction`; not modified.
        spatial: weight of the spatial heterogeneity, finite and not negative.
        temporal: weight of the temporal heterogeneity, finite and not negative.
        mask: as in `residual_stats`.
        null_value: as in `residual_stats`.
        loss: "mae", "mse" or "huber" (with delta 1).

    Returns:
        [B] float32 in the order of the batch, in the target's unit, without gradient. A sample without entries scores
        0, a NaN among its entries makes it NaN. With both weights 0 it is the loss itself.

    Raises:
        TypeError: as `residual_stats`; or a weight that is no number.
        ValueError: as `residual_stats`; or a weight that is negative, infinite or NaN.
        RuntimeError: tensors on different devices.

    Example:
        >>> import torch, stprune
        >>> stprune.score(torch.tensor([[[1.0, 3.0], [1.0, 3.0]]]), torch.zeros(1, 2, 2))
        tensor([2.5000])

    Source:
        Eq. 4 of the method (our definition); spatial = temporal = 0 is the loss score of InfoBatch.
    """
    weights = []
    for name, value in (("spatial", spatial), ("temporal", temporal)):
        value = _number("score", name, value)
        if not 0.0 <= value < math.inf:
            raise ValueError(f"score: {name} must be finite and at least 0, got {value:g}")
        weights.append(value)
    with torch.no_grad():
        stats = _measure("score", prediction, target, mask, null_value, loss, 1.0)
        total = stats.loss
        # A weight of 0 leaves its term out: 0 * inf would turn an infinite loss into NaN.
        for weight, term in zip(weights, (stats.spatial, stats.temporal), strict=True):
            if weight > 0.0:
                total = torch.add(total, term, alpha=weight)
        return total.to(torch.float32)
