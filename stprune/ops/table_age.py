"""table_age and count_nonfinite: what the end of an epoch does to a table of scores."""

from __future__ import annotations

import torch

from stprune.ops._registry import define
from stprune.reference import table_age as reference

define(
    "table_age(Tensor(a!) scores, Tensor(b!) marks, float? mean, float keep) -> ()",
    reference.table_age,
    lambda scores, marks, mean, keep: None,
)
define(
    "count_nonfinite(Tensor scores, Tensor marks) -> Tensor",
    reference.count_nonfinite,
    lambda scores, marks: scores.new_empty((1,), dtype=torch.int64),
)


def table_age(scores: torch.Tensor, marks: torch.Tensor, *, mean: float | None, keep: float) -> None:
    """End an epoch in a table, in one pass: scores of samples not visited in it move towards the mean.

    Args:
        scores: [n] float32; finite ones of samples that are not marked SCORED become mean + keep * (score - mean) (eq. 5).
        marks: [n] uint8; FRESH and KNOWN stay, all other bits are cleared.
        mean: what the scores move towards, rounded to float32; None moves none.
        keep: which share of the distance they keep; rounded to float32.

    Example:
        >>> import torch
        >>> from stprune.ops.table_age import table_age
        >>> scores, marks = torch.tensor([1.0, 5.0, float("inf")]), torch.tensor([9, 8, 0], dtype=torch.uint8)
        >>> table_age(scores, marks, mean=3.0, keep=0.5)
        >>> scores.tolist(), marks.tolist()
        ([1.0, 4.0, inf], [8, 8, 0])

    Source:
        Eq. 5, our definition.
    """
    torch.ops.stprune.table_age(scores, marks, mean, keep)


def count_nonfinite(scores: torch.Tensor, marks: torch.Tensor) -> int:
    """How many samples were scored NaN or infinite last time; waits for the device of `scores`.

    Args:
        scores: [n] float32; not modified.
        marks: [n] uint8, KNOWN where a sample was scored at least once; not modified.

    Example:
        >>> import torch
        >>> from stprune.ops.table_age import count_nonfinite
        >>> count_nonfinite(torch.tensor([float("inf"), float("nan")]), torch.tensor([0, 8], dtype=torch.uint8))
        1
    """
    return int(torch.ops.stprune.count_nonfinite(scores, marks))
