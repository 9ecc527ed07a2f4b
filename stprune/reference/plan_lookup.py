"""Reference of plan_lookup: weights of sample ids in an epoch's plan."""

from __future__ import annotations

import torch


def plan_lookup(
    index: torch.Tensor,
    plan_ids: torch.Tensor | None,
    plan_weights: torch.Tensor,
    mean_weight: torch.Tensor | None,
    num_samples: int,
    *,
    op: str = "plan_lookup",
) -> torch.Tensor:
    """Weights [B] float32 of ids [B] among the kept ids, over their mean; an unknown id's is an error, on a GPU NaN."""
    size = num_samples if plan_ids is None else plan_ids.numel()
    if plan_weights.numel() not in (1, size):
        raise RuntimeError(f"{op}: plan_weights must have one element or one for each of {size} ids")
    row, known = (index, (index >= 0) & (index < size)) if plan_ids is None else rows_of(plan_ids, index)
    if index.device.type == "cpu" and not bool(known.all()):
        raise RuntimeError(f"{op}: index must hold ids of the plan, got {int(index[~known][0])}")
    weight = plan_weights.expand(index.shape) if plan_weights.numel() == 1 else plan_weights[torch.where(known, row, 0)]
    weight = weight.clone() if mean_weight is None else weight / mean_weight
    # Asking would wait for the device: the loss becomes NaN instead.
    return torch.where(known, weight, torch.nan)


def rows_of(ids: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where samples [B] stand among ids [K], ascending: rows [B], K of those that are not there; and which are, [B] bool.

    Example:
        >>> import torch
        >>> from stprune.reference.plan_lookup import rows_of
        >>> rows_of(torch.tensor([2, 5, 7]), torch.tensor([7, 3]))
        (tensor([2, 3]), tensor([ True, False]))
    """
    if len(ids) == 0:
        return torch.zeros_like(index), torch.zeros_like(index, dtype=torch.bool)
    row = torch.searchsorted(ids, index.contiguous()).clamp_max(len(ids) - 1)
    known = ids[row] == index
    return torch.where(known, row, len(ids)), known
