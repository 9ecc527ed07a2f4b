"""What the settings of a criterion (scaler, scales of nodes, weights of steps) make of a batch: tensors for the fused ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from stprune.ops import _check
from stprune.reference.pruned_loss import normalized_null_bounds

_OP = "PrunedLoss"


def setting(name: str, value: Any) -> torch.Tensor | None:
    """A setting as float64 numbers on the host, a copy; None stays.

    Raises:
        TypeError: not numbers.
        ValueError: numbers that are not finite, or too small for the setting.
    """
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        # float64 only on the host: some devices have none.
        numbers = value.detach().to("cpu", copy=True).to(torch.float64)
    elif isinstance(value, np.ndarray | Sequence) and not isinstance(value, str):
        numbers = torch.from_numpy(np.array(value, dtype=np.float64))
    else:
        numbers = torch.tensor(_check.real(_OP, name, value, -math.inf, math.inf), dtype=torch.float64)
    least, rule = {
        "mean": (-math.inf, "be finite everywhere"),
        "horizon_weights": (0.0, "be one finite weight >= 0 for each step"),
    }.get(name, (math.ulp(0.0), "be positive and finite everywhere"))
    if not bool((good := torch.isfinite(numbers) & (numbers >= least)).all()):
        raise ValueError(f"{_OP}: {name} must {rule}, got {float(numbers[~good][0]):g}")
    if name == "horizon_weights" and numbers.dim() != 1:
        raise ValueError(f"{_OP}: {name} must {rule}, got shape {tuple(numbers.shape)}")
    return numbers


class Remembered:
    """The last tensor made of some settings; it is made again where one of them, or the key, has changed since.

    Settings are compared by value, as somebody may write into one. Inside torch.compile the tensor is made anew.
    """

    def __init__(self) -> None:
        self._last: tuple[Any, list[torch.Tensor | None], torch.Tensor] | None = None

    def get(self, key: Any, settings: Sequence[torch.Tensor | None], make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """`make()`, or what it gave last time for the same key and settings."""
        if torch.compiler.is_compiling():
            return make()
        if self._last is None or self._last[0] != key or not all(map(_equal, self._last[1], settings)):
            with torch.inference_mode(False):  # or no training step could use what an evaluation made
                self._last = key, [None if x is None else x.clone() for x in settings], make()
        return self._last[2]


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return torch.equal(a, b) if a is not None and b is not None else a is b


def affine_rows(
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
    node_scale: torch.Tensor | None,
    null: tuple[float | None, float],
    *,
    normalized_target: bool,
    target_dtype: torch.dtype,
    nodes: Sequence[int],
    channels: Sequence[int],
) -> torch.Tensor:
    """[5 or 7, nodes ..., channels ...] float64 on the host: factor and offset of prediction and of target, factor of their
    difference, and for a normalised target the bounds between which one means missing.

    Args:
        mean, std, node_scale: as `setting` gives them; of nodes, or nodes and channels.
        null: null_value and null_tolerance.
        normalized_target: whether the target is mapped like the prediction.
        target_dtype: what the target was rounded to.
        nodes, channels: sizes of the batch's dimensions of nodes and of channels.

    Raises:
        ValueError: a setting does not fit nodes and channels.
    """
    shape = [*nodes, *channels]
    one = torch.ones((), dtype=torch.float64)
    factor, offset = one if std is None else std, one * 0.0 if mean is None else mean
    scale = one if node_scale is None else node_scale
    factor, offset, scale = (_spread(value, shape) for value in (factor, offset, scale))
    if not normalized_target:
        return torch.stack([factor, offset, torch.ones_like(factor), torch.zeros_like(offset), 1.0 / scale])
    null_value, null_tolerance = null
    bounds = normalized_null_bounds(
        math.nan if null_value is None else null_value, null_tolerance, target_dtype, offset, factor
    )
    return torch.stack([factor, offset, factor, offset, 1.0 / scale, *bounds])


def _spread(value: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A value for every node, or every node and channel, for all of them."""
    value = value.reshape(()) if value.numel() == 1 else value
    given = tuple(value.shape)
    if value.dim() <= len(shape):
        value = value.reshape((*given, *[1] * (len(shape) - value.dim())))
    if value.dim() > len(shape) or any(size not in (1, wanted) for size, wanted in zip(value.shape, shape, strict=True)):
        raise ValueError(
            f"{_OP}: mean, std and node_scale must fit nodes and channels {tuple(shape)}, got {tuple(value.shape)}; "
            "dims says which dimensions of the prediction are which, for a grid 'BTHW' or 'BTCHW'"
        )
    return value.expand(torch.Size(shape))


def num_nodes_of(settings: Sequence[torch.Tensor | None]) -> int:
    """Of how many nodes the settings speak; 1 where each is one number for all."""
    return max([1, *(value.shape[0] for value in settings if value is not None and value.dim() > 0)])


def as_columns(rows: torch.Tensor, node: torch.Tensor | None, counts_nodes: list[bool]) -> torch.Tensor:
    """Values [R, nodes ..., channels ...] for the columns of a batch, [R, 1 or B, F] contiguous.

    Args:
        rows: not modified.
        node: [B, m] drawn nodes, on the device of `rows`, or None.
        counts_nodes: which of the batch's dimensions count nodes, in their order; at most one other counts channels.
    """
    rows = rows.unsqueeze(1) if node is None else rows[:, node]
    if len(counts_nodes) > 1 and counts_nodes[-1] and not all(counts_nodes):
        # Channels come before nodes in the tensors.
        rows = rows.movedim(-1, 2 + counts_nodes.index(False))
    return rows.reshape(rows.shape[0], rows.shape[1], math.prod(rows.shape[2:])).contiguous()


def spread_nodes(shares: torch.Tensor, sizes: list[int], counts_nodes: list[bool]) -> torch.Tensor:
    """Values [B, m] of nodes for every column, contiguous [B, F]."""
    view = [size if counted else 1 for size, counted in zip(sizes, counts_nodes, strict=True)]
    batch = shares.shape[0]
    return shares.reshape(batch, *view).expand(batch, *sizes).reshape(batch, math.prod(sizes)).contiguous()


def mean_of_channels(means: torch.Tensor, sizes: list[int], counts_nodes: list[bool]) -> torch.Tensor:
    """Values [B, F] of columns for every node, [B, m] float32: the mean of its channels that have one."""
    channels = [1 + i for i, (size, counted) in enumerate(zip(sizes, counts_nodes, strict=True)) if size > 1 and not counted]
    if channels:
        means = means.view(means.shape[0], *sizes).nanmean(channels)
    return means.to(torch.float32)
