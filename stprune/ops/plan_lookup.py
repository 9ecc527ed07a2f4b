"""plan_lookup: weights of sample ids in an epoch's plan."""

from __future__ import annotations

import torch

from stprune.ops._registry import define
from stprune.reference import plan_lookup as reference


def _fake(
    index: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, full: bool, mean_weight: torch.Tensor | None
) -> torch.Tensor:
    return index.new_empty(index.shape, dtype=torch.float32)


define(
    "plan_lookup(Tensor index, Tensor indices, Tensor weights, bool full, Tensor? mean_weight) -> Tensor",
    reference.plan_lookup,
    _fake,
)

_OP = torch.ops.stprune.plan_lookup.default


def plan_lookup(
    index: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, *, full: bool, mean_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Weights of sample ids in a plan, divided by their mean.

    Args:
        index: [B] int64 sample ids; not modified.
        indices: [K] int64 kept ids, ascending, on the device of `index`; not modified.
        weights: [K] float32, aligned with `indices`; not modified.
        full: whether `indices` is 0, 1, ..., K - 1; ids then are their own positions.
        mean_weight: one float32 that the weights are divided by, or None.

    Returns:
        [B] float32 in the order of `index`.

    Raises:
        RuntimeError: an id is not in the plan (on the CPU; on a GPU its weight is NaN).

    Example:
        >>> import torch
        >>> from stprune.ops.plan_lookup import plan_lookup
        >>> plan_lookup(torch.tensor([7, 2]), torch.tensor([2, 5, 7]), torch.tensor([1.0, 2.0, 4.0]), full=False)
        tensor([4., 1.])
    """
    result: torch.Tensor = _OP(index.contiguous(), indices, weights, full, mean_weight)
    return result
