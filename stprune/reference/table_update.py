"""Reference of table_update: eq. 5 for the visited samples."""

from __future__ import annotations

import torch

SCORED = 3
"""Mark of a visited entry: scored in this epoch (1), scored since ranks last exchanged their scores (2).

Kernels may use the bits above these for their own ends."""


def table_update(
    scores: torch.Tensor,
    marks: torch.Tensor,
    variance: torch.Tensor | None,
    count: torch.Tensor,
    index: torch.Tensor,
    values: torch.Tensor,
    beta: float,
    counted: bool,
) -> None:
    """Move the visited samples to `beta * old + (1 - beta) * new`, mark them, and add their number to `count[0]` if asked."""
    if (index.dtype, values.dtype) != (torch.int64, torch.float32) or index.dim() != 1 or values.shape != index.shape:
        raise RuntimeError("table_update: index [B] must be int64 and values [B] float32")
    if index.device.type == "cpu" and index.numel():
        low, high = (int(bound) for bound in torch.aminmax(index))
        if low < 0 or high >= scores.numel():
            bad = low if low < 0 else high
            raise RuntimeError(f"table_update: index must lie in [0, {scores.numel() - 1}], got {bad}")
    new = last_of_each(index, values)
    old = scores[index]
    # A score that is not finite is replaced, never averaged.
    smooth = torch.isfinite(old)
    mixed = torch.where(smooth, beta * old + (1.0 - beta) * new, new)
    if variance is not None:
        before = variance[index]
        moved = beta * before + (1.0 - beta) * (new - old).square()
        variance[index] = torch.where(smooth & torch.isfinite(new), moved, before)
    scores[index] = mixed
    marks[index] = SCORED
    if counted:
        count[0] += index.numel()


def last_of_each(index: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """values[i] of the last i with the same id: parallel writers of one id then all write the same bits."""
    ordered, position = torch.sort(index, stable=True)
    last = torch.searchsorted(ordered, index.contiguous(), right=True) - 1
    return values[position[last]]
