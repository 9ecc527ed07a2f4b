"""Reference of table_age and count_nonfinite."""

from __future__ import annotations

import torch

from stprune.reference.table_update import FRESH, KNOWN, SCORED

# Work is done in pieces of this size, so that temporaries stay under a few MB.
_PIECE = 1 << 18


def table_age(scores: torch.Tensor, marks: torch.Tensor, mean: float | None, keep: float) -> None:
    """End an epoch in a table's columns [n], in place; see stprune.ops.table_age."""
    for part, bits in zip(scores.split(_PIECE), marks.split(_PIECE), strict=True):
        if mean is not None:
            # +inf and NaN stay what they are; with no finite score at all there is no mean and nothing to move.
            idle = ~(bits & SCORED).bool() & torch.isfinite(part)
            part.copy_(torch.where(idle, mean + keep * (part - mean), part))
        bits &= FRESH | KNOWN


def count_nonfinite(scores: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """How many scores [n] are NaN or infinite though they are marked as known, as [1] int64."""
    count = torch.zeros(1, dtype=torch.int64, device=scores.device)
    for part, bits in zip(scores.split(_PIECE), marks.split(_PIECE), strict=True):
        count += ((bits & KNOWN).bool() & ~torch.isfinite(part)).sum()
    return count
