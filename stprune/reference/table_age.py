"""Reference of table_age and count_nonfinite."""

from __future__ import annotations

import torch

# Work is done in pieces of this size, so that temporaries stay under a few MB.
_PIECE = 1 << 18
NEVER = -1
VISITED, FRESH = 1, 2


def table_age(
    scores: torch.Tensor, stamp: torch.Tensor, marks: torch.Tensor, epoch: int, mean: float | None, keep: float
) -> None:
    """End `epoch` in a table's columns [n], in place; see stprune.ops.table_age."""
    columns = (column.split(_PIECE) for column in (scores, stamp, marks))
    for part, stamps, bits in zip(*columns, strict=True):
        stamps.masked_fill_((bits & VISITED).bool(), epoch)
        bits &= FRESH
        if mean is not None:
            # +inf and NaN stay what they are; with no finite score at all there is no mean and nothing to move.
            idle = (stamps != epoch) & torch.isfinite(part)
            part.copy_(torch.where(idle, mean + keep * (part - mean), part))


def count_nonfinite(scores: torch.Tensor, stamp: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """How many scores [n] are NaN or infinite though they have a stamp or are marked as visited, as [1] int64."""
    count = torch.zeros(1, dtype=torch.int64, device=scores.device)
    columns = (column.split(_PIECE) for column in (scores, stamp, marks))
    for part, stamps, bits in zip(*columns, strict=True):
        count += (((stamps != NEVER) | (bits & VISITED).bool()) & ~torch.isfinite(part)).sum()
    return count
