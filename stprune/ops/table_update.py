"""table_update: takes the scores of a batch into a table, in place."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from stprune.ops._registry import define, define_cuda
from stprune.reference import table_update as reference


def _fake(
    scores: torch.Tensor,
    marks: torch.Tensor,
    variance: torch.Tensor | None,
    count: torch.Tensor,
    index: torch.Tensor,
    values: torch.Tensor,
    beta: float,
    counted: bool,
) -> None:
    return None


@functools.cache
def _launcher() -> Callable[..., None] | None:
    """The Triton kernel's launcher, imported at the first call; None where triton is not installed."""
    try:
        launcher: Callable[..., None] = importlib.import_module("stprune.kernels.table_update").table_update
    except ImportError:
        return None
    return launcher


def _cuda(scores: torch.Tensor, *arguments: Any) -> None:
    launcher = _launcher()
    if launcher is None:
        # Indexing asserts on the device that ids are in range, as is done here for the kernel.
        reference.table_update(scores, *arguments)
        return
    index, num_samples = arguments[3], scores.numel()
    inside = ((index >= 0) & (index < num_samples)).all()
    torch._assert_async(inside, f"table_update: index must lie in [0, {num_samples - 1}]")
    launcher(scores, *arguments)


define(
    "table_update(Tensor(a!) scores, Tensor(b!) marks, Tensor(c!)? variance, Tensor(d!) count, "
    "Tensor index, Tensor values, float beta, bool counted) -> ()",
    reference.table_update,
    _fake,
)

define_cuda("table_update", _cuda)
TABLE_UPDATE = torch.ops.stprune.table_update.default
"""The op itself, for callers whose arguments are what it takes."""


def table_update(
    scores: torch.Tensor,
    marks: torch.Tensor,
    variance: torch.Tensor | None,
    count: torch.Tensor,
    index: torch.Tensor,
    values: torch.Tensor,
    *,
    beta: float,
    counted: bool = False,
) -> None:
    """Take in the scores of a batch: smoothing, variance and mark in one op without a sort (eq. 5).

    Args:
        scores: [n] float32; visited entries move to `beta * old + (1 - beta) * new`. A stored value that is not finite is
            replaced. Modified.
        marks: [n] uint8; visited entries get SCORED; bits above it are the kernel's own. Modified.
        variance: [n] float32 running variance, or None. Modified.
        count: [2] int64: samples counted, which B is added to if `counted`, and a number of the kernel's own. Modified.
        index: [B] int64 ids in [0, n); where one repeats, the last wins. Not modified.
        values: [B] float32 new scores. Not modified.
        beta: weight of the old score.
        counted: whether the batch counts.

    Raises:
        RuntimeError: an id lies outside the table (on a GPU the device asserts); nothing was changed then.

    Source:
        Eq. 5.
    """
    TABLE_UPDATE(scores, marks, variance, count, index, values, beta, counted)
