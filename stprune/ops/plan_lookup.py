"""plan_lookup: the weights of a batch's samples in an epoch's plan."""

from __future__ import annotations

import torch

from stprune.ops._registry import by_triton, define, define_cuda
from stprune.ops.table_update import ABSENT
from stprune.reference.plan_lookup import plan_lookup as reference


def _fake(index: torch.Tensor, *plan: object) -> torch.Tensor:
    return index.new_empty(index.shape, dtype=torch.float32)


define(
    "plan_lookup(Tensor index, Tensor? plan_ids, Tensor plan_weights, Tensor? mean_weight, int num_samples) -> Tensor",
    reference,
    _fake,
)
define_cuda("plan_lookup", by_triton("plan_lookup", reference))


def plan_lookup(
    index: torch.Tensor,
    plan_ids: torch.Tensor | None,
    plan_weights: torch.Tensor,
    mean_weight: torch.Tensor | None,
    num_samples: int,
) -> torch.Tensor:
    """The weights of samples in a plan, on the device of `index`.

    Args:
        index: [B] int64 sample ids, contiguous; not modified.
        plan_ids: [K] int64 ids of the plan, ascending; None where all of num_samples are in it. Not modified.
        plan_weights: [K] or [1] float32; not modified.
        mean_weight: [] float32, which the weights are divided by, or None.
        num_samples: samples of the data set.

    Returns:
        [B] float32.

    Raises:
        RuntimeError: an id is not in the plan. On a GPU its weight is NaN instead, as asking would wait for the device.

    Example:
        >>> import torch
        >>> from stprune.ops.plan_lookup import plan_lookup
        >>> plan_lookup(torch.tensor([7, 2]), torch.tensor([2, 5, 7]), torch.tensor([1.0, 2.0, 4.0]), torch.tensor(2.0), 9)
        tensor([2.0000, 0.5000])

    Source:
        Eq. 10.
    """
    weights: torch.Tensor = torch.ops.stprune.plan_lookup.default(index, plan_ids, plan_weights, mean_weight, num_samples)
    return weights


def rows_of(ids: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where samples [B] stand among ids [K], ascending: rows [B], negative where one is not there; and which are, [B] bool.

    `table_update.wrong_id` tells the sample of a negative row.

    Example:
        >>> import torch
        >>> from stprune.ops.plan_lookup import rows_of
        >>> rows, known = rows_of(torch.tensor([2, 5, 7]), torch.tensor([7, 3]))
        >>> known.tolist(), int(rows[0]), int(rows[1]) < 0
        ([True, False], 2, True)
    """
    absent = index | ABSENT
    if len(ids) == 0:
        return absent, torch.zeros_like(index, dtype=torch.bool)
    row = torch.searchsorted(ids, index.contiguous()).clamp_max(len(ids) - 1)
    known = ids[row] == index
    return torch.where(known, row, absent), known
