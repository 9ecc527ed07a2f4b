"""residual_stats and score: how large the error of every sample is, and how unevenly it is spread."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import torch

from stprune.ops import _check, node_stats  # noqa: F401  node_stats: to be registered
from stprune.ops.pruned_loss import LOSSES, arranged, checked_dims, checked_loss, pruned_loss

GRANULARITIES = ("window", "node")


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

    @property
    def nonfinite(self) -> torch.Tensor:
        """[B] bool: samples whose loss is NaN or infinite, as an entry of theirs is."""
        return ~torch.isfinite(self.loss)


def _number(op: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    return float(value)


def _checked(op: str, prediction: Any, target: Any, mask: Any, dims: Any) -> tuple[Any, Any, Any, str | None]:
    """The tensors as views [B, T, nodes and channels ...], and the checked dims."""
    prediction = _check.floating(op, "prediction", prediction)
    target = _check.floating(op, "target", target)
    if prediction.dim() < 2:
        raise ValueError(
            f"{op}: prediction must have at least two dimensions [B, T, ...], got shape {tuple(prediction.shape)}; "
            "unsqueeze(0) makes one sample a batch"
        )
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
    dims = checked_dims(op, dims)
    if dims is not None and len(dims) != prediction.dim():
        raise ValueError(f"{op}: dims must name the prediction's {prediction.dim()} dimensions, got {dims!r}")
    prediction, target = arranged(prediction, dims), arranged(target, dims)
    return prediction, target, None if mask is None else arranged(mask, dims), dims


def residual_stats(
    prediction: torch.Tensor,
    target: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    null_value: float | None = None,
    null_tolerance: float = 0.0,
    loss: str = "mae",
    huber_delta: float = 1.0,
    mape_floor: float = 1e-4,
    quantile: float = 0.5,
    dims: str | None = None,
    granularity: str = "window",
) -> ResidualStats:
    """Loss, spatial and temporal heterogeneity of the error, and number of entries, of every sample.

    With u = |prediction - target| and all means over the entries that count: `spatial` is the population standard
    deviation over nodes of the nodes' means over time, `temporal` that over steps of the steps' means over nodes.
    Channels fold into nodes. Nodes and steps without entries are left out, and a sample without entries gives 0, 0,
    0 and count 0. Entries that are removed reach nothing, even where they hold NaN or infinity. Bits depend neither on the
    number of threads nor on the instruction set. One pass over prediction and target, in any layout, without a copy.

    Args:
        prediction: [B, T, N, C], [B, T, N] or any [B, T, ...] float32, float64, bfloat16 or float16, or what `dims` says;
            not modified.
        target: shape, dtype and device of `prediction`; not modified.
        mask: the prediction's shape, bool, True where an entry counts; not modified. None: all count.
        null_value: removes entries whose target equals it (after rounding it to the target's dtype) or is NaN; NaN
            removes only NaN; None removes nothing, and a NaN then makes its own sample NaN.
        null_tolerance: how far from null_value, in the target's unit, an entry is still removed, >= 0. For targets that went
            through a scaler and back, in which 0 has become 1.5e-5; the field uses 5e-5.
        loss: "mae", "mse", "huber", "mape" (|e| / |target|, as a ratio; entries with |target| < mape_floor are left out of
            everything) or "quantile" (the pinball loss): what `loss` is the mean of. The heterogeneities are always those of u.
        huber_delta: where the Huber loss becomes linear, positive, in the target's unit.
        mape_floor: below this magnitude a target has no relative error, positive, in the target's unit.
        quantile: which quantile the pinball loss aims at, in (0, 1); under-prediction costs `quantile`, over-prediction
            1 - `quantile` times the error.
        dims: what the dimensions are, one letter each: "BTNC" (as None), "BTN", "BNT", "BCHW", "BTCHW", any order of B, T,
            N or H and W, and C. Grids and channels fold into nodes; without T there is one step.
        granularity: "window" scores whole windows; "node" every node of each by itself, over its steps and channels.

    Returns:
        `ResidualStats` of four [B] tensors ([B, N] for nodes, or [B, H, W]) in the order of the batch: loss, spatial and
        temporal float32 (float64 for float64 input, sums never narrower than float32) and count int64. A node's spatial
        heterogeneity is that of its channels. Gradients flow through `loss` alone, to prediction and target, once; not for
        nodes.

    Raises:
        TypeError: no floating tensors, different dtypes, a mask that is not bool, or an option that is no number.
        ValueError: fewer than two dimensions, different shapes, an unknown loss or granularity, dims that do not fit, or a
            parameter of the loss outside its range.
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
    op = "residual_stats"
    prediction, target, mask, dims = _checked(op, prediction, target, mask, dims)
    options = (*_check.null(op, null_value, null_tolerance), *checked_loss(op, loss, huber_delta, mape_floor, quantile))
    granularity = _check.choice(op, "granularity", granularity, GRANULARITIES)
    if granularity == "node":
        inputs = [_channels_last(x, dims) for x in (prediction, target, mask)]
        return ResidualStats(*torch.ops.stprune.node_stats(*inputs, *options))
    nothing = (None,) * 4
    _, mean, statistics, count, _ = pruned_loss(prediction, target, mask, *nothing, *options, 0.0, 0.0, False)
    return ResidualStats(mean, statistics[0], statistics[1], count[:-1])


def _channels_last(x: torch.Tensor | None, dims: str | None) -> torch.Tensor | None:
    """[B, T, nodes ..., C] without gradient; C is added where there is none."""
    if x is None:
        return None
    letters = "NC"[: x.dim() - 2] if dims is None else "".join(letter for letter in dims if letter not in "BT")
    if "C" not in letters:
        return x.detach().unsqueeze(-1)
    return x.detach().movedim(2 + letters.index("C"), -1)


def score(
    prediction: torch.Tensor,
    target: torch.Tensor,
    *,
    spatial: float = 0.5,
    temporal: float = 0.5,
    mask: torch.Tensor | None = None,
    null_value: float | None = None,
    null_tolerance: float = 0.0,
    loss: str = "mae",
    dims: str | None = None,
    granularity: str = "window",
) -> torch.Tensor:
    """Score of every sample: its loss plus the heterogeneity of its error over nodes and over time.

    Args:
        prediction: [B, T, N, C], [B, T, N] or any [B, T, ...] float32, float64, bfloat16 or float16, or what `dims` says;
            not modified.
        target: shape, dtype and device of `prediction`; not modified.
        spatial: weight of the spatial heterogeneity, finite and not negative.
        temporal: weight of the temporal heterogeneity, finite and not negative.
        mask: as in `residual_stats`.
        null_value, null_tolerance: as in `residual_stats`.
        loss: "mae", "mse", "huber" (with delta 1), "mape" or "quantile" (the median).
        dims, granularity: as in `residual_stats`.

    Returns:
        [B] float32 in the order of the batch ([B, N] for nodes), in the target's unit, without gradient. A sample without
        entries scores 0, a NaN among its entries makes it NaN. With both weights 0 it is the loss itself.

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
    op = "score"
    weights = []
    for name, value in (("spatial", spatial), ("temporal", temporal)):
        value = _number(op, name, value)
        if not 0.0 <= value < math.inf:
            raise ValueError(f"score: {name} must be finite and at least 0, got {value:g}")
        weights.append(value)
    prediction, target, mask, dims = _checked(op, prediction, target, mask, dims)
    options = (*_check.null(op, null_value, null_tolerance), *checked_loss(op, loss, 1.0, 1e-4, 0.5))
    granularity = _check.choice(op, "granularity", granularity, GRANULARITIES)
    if granularity == "node":
        inputs = [_channels_last(x, dims) for x in (prediction, target, mask)]
        stats = torch.ops.stprune.node_stats(*inputs, *options)
        total: torch.Tensor = stats[0]
        # A weight of 0 leaves its term out: 0 * inf would turn an infinite loss into NaN.
        for weight, term in zip(weights, stats[1:3], strict=True):
            if weight > 0.0:
                total = torch.add(total, term, alpha=weight)
        return total.to(torch.float32)
    nothing = (None,) * 4
    statistics = pruned_loss(prediction.detach(), target.detach(), mask, *nothing, *options, *weights, False)[2]
    return statistics[2].to(torch.float32)


__all__ = ["LOSSES", "ResidualStats", "residual_stats", "score"]
