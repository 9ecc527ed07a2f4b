"""Reference of table_update: eq. 5 for the visited samples."""

from __future__ import annotations

import torch

SCORED, FRESH, TRAINED, KNOWN = 1, 2, 4, 8
"""Bits of a sample's mark: scored in this epoch, scored since ranks last exchanged their scores, trained on in this epoch,
scored at least once. Kernels may use the bits above these for their own ends."""


def table_update(
    scores: torch.Tensor | None,
    marks: torch.Tensor | None,
    variance: torch.Tensor | None,
    count: torch.Tensor,
    index: torch.Tensor,
    values: torch.Tensor,
    entries: torch.Tensor | None,
    beta: float,
    trained: bool,
) -> None:
    """Move the visited samples to `beta * old + (1 - beta) * new`, mark them, and count them if they were trained on."""
    if (index.dtype, values.dtype) != (torch.int64, torch.float32) or index.dim() != 1 or values.shape != index.shape:
        raise RuntimeError("table_update: index [B] must be int64 and values [B] float32")
    if scores is not None and index.device.type == "cpu" and index.numel():
        low, high = (int(bound) for bound in torch.aminmax(index))
        if low < 0 or high >= scores.numel():
            bad = low if low < 0 else high
            raise RuntimeError(f"table_update: index must lie in [0, {scores.numel() - 1}], got {bad}")
    if trained:
        count[2] += index.numel()
    if scores is None or marks is None:
        return
    # Of equal ids the last stands for all: parallel writers of one id then all write the same bits.
    last = last_of_each(index)
    new, old, mark = values[last], scores[index], marks[index]
    left = torch.zeros_like(index, dtype=torch.bool)
    if trained:
        left = (mark & TRAINED) != 0
        first = last == torch.arange(index.numel(), device=index.device)
        count[0] += (first & ~left).sum()
        marks[index] = mark | TRAINED
    scored = ~left if entries is None else ~left & (entries[last] > 0)
    # A score that is not finite is replaced, never averaged.
    smooth = torch.isfinite(old)
    mixed = torch.where(smooth, beta * old + (1.0 - beta) * new, new)
    if variance is not None:
        before = variance[index]
        moved = beta * before + (1.0 - beta) * (new - old).square()
        variance[index] = torch.where(scored & smooth & torch.isfinite(new), moved, before)
    scores[index] = torch.where(scored, mixed, old)
    marks[index] |= torch.where(scored, SCORED | FRESH | KNOWN, 0).to(torch.uint8)


def last_of_each(index: torch.Tensor) -> torch.Tensor:
    """[B] int64: the last place in `index` that holds the same id."""
    ordered, position = torch.sort(index, stable=True)
    return position[torch.searchsorted(ordered, index.contiguous(), right=True) - 1]
