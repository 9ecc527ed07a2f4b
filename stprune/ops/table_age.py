"""table_age and count_nonfinite: what the end of an epoch does to a table of scores."""

from __future__ import annotations

import torch

from stprune.ops._registry import define
from stprune.reference import table_age as reference

NEVER = reference.NEVER
"""Epoch stamp of a sample that was never scored."""

define(
    "table_age(Tensor(a!) scores, Tensor(b!) stamp, Tensor(c!) marks, int epoch, float? mean, float keep) -> ()",
    reference.table_age,
    lambda scores, stamp, marks, epoch, mean, keep: None,
)
define(
    "count_nonfinite(Tensor scores, Tensor stamp, Tensor marks) -> Tensor",
    reference.count_nonfinite,
    lambda scores, stamp, marks: scores.new_empty((1,), dtype=torch.int64),
)


def table_age(
    scores: torch.Tensor, stamp: torch.Tensor, marks: torch.Tensor, *, epoch: int, mean: float | None, keep: float
) -> None:
    """End an epoch in a table, in one pass: visits become stamps, and scores of samples not visited move towards the mean.

    Args:
        scores: [n] float32; finite ones of samples not visited become mean + keep * (score - mean) (eq. 5).
        stamp: [n] int32 epoch of each sample's last score; `epoch` where it was visited.
        marks: [n] uint8, bit 0 where a sample was visited in this epoch; cleared. Bit 1 stays, other bits are cleared too.
        epoch: the epoch that ends.
        mean: what the scores move towards, rounded to float32; None moves none.
        keep: which share of the distance they keep; rounded to float32.

    Example:
        >>> import torch
        >>> from stprune.ops.table_age import table_age
        >>> scores, stamp = torch.tensor([1.0, 5.0, float("inf")]), torch.tensor([0, 2, -1], dtype=torch.int32)
        >>> table_age(scores, stamp, torch.tensor([1, 0, 0], dtype=torch.uint8), epoch=3, mean=3.0, keep=0.5)
        >>> scores.tolist(), stamp.tolist()
        ([1.0, 4.0, inf], [3, 2, -1])

    Source:
        Eq. 5, our definition.
    """
    torch.ops.stprune.table_age(scores, stamp, marks, epoch, mean, keep)


def count_nonfinite(scores: torch.Tensor, stamp: torch.Tensor, marks: torch.Tensor) -> int:
    """How many samples were scored NaN or infinite last time; waits for the device of `scores`.

    Args:
        scores: [n] float32; not modified.
        stamp: [n] int32 epoch of each sample's last score before this epoch, `NEVER` where there was none; not modified.
        marks: [n] uint8, bit 0 where a sample was visited in this epoch; not modified.

    Example:
        >>> import torch
        >>> from stprune.ops.table_age import count_nonfinite
        >>> stamp, marks = torch.tensor([-1, 0], dtype=torch.int32), torch.tensor([0, 0], dtype=torch.uint8)
        >>> count_nonfinite(torch.tensor([float("inf"), float("nan")]), stamp, marks)
        1
    """
    return int(torch.ops.stprune.count_nonfinite(scores, stamp, marks))
