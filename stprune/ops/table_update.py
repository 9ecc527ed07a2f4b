"""table_update: takes the scores of a batch into a table, in place."""

from __future__ import annotations

import torch

from stprune.ops._registry import by_triton, define, define_cuda
from stprune.reference import table_update as reference
from stprune.reference.table_update import FRESH, KNOWN, SCORED, TRAINED

__all__ = ["ABSENT", "FRESH", "KNOWN", "SCORED", "TRAINED", "table_update", "wrong_id"]

ABSENT = -(1 << 61)
"""The bits that make a sample without a row in a table a negative row, from which its id can be told."""

define(
    "table_update(Tensor(a!)? scores, Tensor(b!)? marks, Tensor(c!)? variance, Tensor(d!) count, "
    "Tensor index, Tensor values, Tensor? entries, Tensor? weight, float beta, bool trained) -> ()",
    reference.table_update,
    lambda *arguments: None,
)
define_cuda("table_update", by_triton("table_update", reference.table_update))


def table_update(
    scores: torch.Tensor | None,
    marks: torch.Tensor | None,
    variance: torch.Tensor | None,
    count: torch.Tensor,
    index: torch.Tensor,
    values: torch.Tensor,
    *,
    entries: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    beta: float,
    trained: bool = False,
) -> None:
    """Take in the scores of a batch: smoothing, variance and mark in one op without a sort (eq. 5).

    Args:
        scores: [n] float32; visited entries move to `beta * old + (1 - beta) * new`. A stored value that is not finite is
            replaced. Modified. None: nothing is stored, marks and variance are None too, and only count[2] moves.
        marks: [n] uint8; visited entries get SCORED, FRESH and KNOWN, and TRAINED if `trained`; bits above these are the
            kernel's own. Modified.
        variance: [n] float32 running variance, or None. Modified.
        count: [4] int64: distinct samples trained on in this epoch; a number of the kernel's own; samples of all trained
            batches, repeats included; the largest wrong id that came on a GPU, see `wrong_id`. Modified.
        index: [B] int64 ids in [0, n); where one repeats, the last wins. Not modified.
        values: [B] float32 new scores. Not modified.
        entries: [B] int64 or None: where it is 0 the sample keeps score and variance and is not marked as scored. Not modified.
        weight: [B] float32, what `plan_lookup` found: an id is wrong too where it is NaN; or None. Not modified.
        beta: weight of the old score.
        trained: whether the batch was trained on. Ids that were trained on in an earlier batch of the epoch are then left
            as they are.

    Raises:
        RuntimeError: an id lies outside the table, or is not in the plan; nothing was changed then. On a GPU, where asking
            would wait for it, wrong ids alone are left out and noted in count[3].

    Source:
        Eq. 5.
    """
    torch.ops.stprune.table_update(scores, marks, variance, count, index, values, entries, weight, beta, trained)


def wrong_id(noted: int) -> int | None:
    """The wrong id that a table's count[3] tells of, or None; of a row that stands for no sample (ABSENT) the sample's id.

    Example:
        >>> from stprune.ops.table_update import ABSENT, wrong_id
        >>> wrong_id(0), wrong_id(1), wrong_id(-1), wrong_id(7 | ABSENT)
        (None, 0, -1, 7)
    """
    if ABSENT <= noted < ABSENT // 2:
        return noted - ABSENT
    return noted - (noted > 0) if noted else None
