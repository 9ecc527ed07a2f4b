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
    position = index if plan_ids is None else torch.searchsorted(plan_ids, index.contiguous())
    position = position.clamp(0, max(size - 1, 0))
    if size == 0:
        known = torch.zeros_like(index, dtype=torch.bool)
    else:
        known = (position if plan_ids is None else plan_ids[position]) == index
    if index.device.type == "cpu" and not bool(known.all()):
        raise RuntimeError(f"{op}: index must hold ids of the plan, got {int(index[~known][0])}")
    weight = plan_weights.expand(index.shape) if plan_weights.numel() == 1 else plan_weights[position]
    weight = weight.clone() if mean_weight is None else weight / mean_weight
    # Asking would wait for the device: the loss becomes NaN instead.
    return torch.where(known, weight, torch.nan)
