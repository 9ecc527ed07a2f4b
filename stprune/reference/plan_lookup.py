"""Reference of plan_lookup."""

from __future__ import annotations

import torch


def plan_lookup(
    index: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, full: bool, mean_weight: torch.Tensor | None
) -> torch.Tensor:
    """Weights [B] float32 of ids [B] among the kept `indices`, over their mean; an unknown id's is an error, or NaN."""
    if indices.numel() == 0:
        known, weight = torch.zeros_like(index, dtype=torch.bool), torch.zeros(index.shape, device=index.device)
    else:
        position = index if full else torch.searchsorted(indices, index.contiguous())
        position = position.clamp(0, indices.numel() - 1)
        known = (indices[position] == index) if not full else (index >= 0) & (index < indices.numel())
        weight = weights[position]
    if index.device.type == "cpu":
        if not bool(known.all()):
            raise RuntimeError(f"plan_lookup: index must hold ids of the plan, got {int(index[~known][0])}")
    else:
        # Asking would wait for the device: the loss becomes NaN instead.
        weight = torch.where(known, weight, torch.nan)
    return weight.clone() if mean_weight is None else weight / mean_weight
